"""`kdray plugins check NAME`: does a distiller keep the contract?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..errors import ConfigError, PluginError, did_you_mean
from ..run.tables import new_table


def check(
    name: Annotated[str, typer.Argument(help="A distiller, or a plugin: then all its distillers.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of the distiller: `temperature=2`.", metavar="[OPTION=VALUE]..."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of objects with `name`.")] = False,
) -> None:
    """Run the conformance kit on a distiller: gradients, restarts, two workers, and more. Exit code 3 when it fails.

    The networks are made up, so that neither data nor weights are needed.

    Examples:

        kdray plugins check kd

        kdray plugins check crd negatives.kind=queue

        kdray plugins check kdray-foo
    """
    from pydantic import ValidationError

    from ..config.explain import explain
    from ..config.sections import parse_options
    from ..config.yaml import dotted
    from ..registry import Registry
    from ..testing import examine

    registry = Registry.default()
    values = _options(options or [])
    classes = {each: registry.get("distillers", each).cls for each in _distillers(name, registry)}
    for each, cls in classes.items() if values else ():
        try:
            parse_options(cls.Options, values)
        except ValidationError as error:
            faults = explain(error, cls.Options, values)
            raise ConfigError("\n".join(f"{each}: {dotted(f.path)}: {f.text}" for f in faults)) from None
    found = {each: examine(cls, values) for each, cls in classes.items()}
    if as_json:
        rows = [
            {
                "name": each,
                "passed": all(verdict.passed for verdict in verdicts),
                "checks": [
                    {"name": v.check, "question": v.question, "passed": v.passed, "remark": v.remark} for v in verdicts
                ],
            }
            for each, verdicts in found.items()
        ]
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_tables(found)
    failed = {each: [v.check for v in verdicts if not v.passed] for each, verdicts in found.items()}
    told = [f"{each} ({', '.join(checks)})" for each, checks in failed.items() if checks]
    if told:
        raise PluginError(f"the contract is not kept by {', '.join(told)}")


def _distillers(name: str, registry) -> list[str]:
    """That one, or those of the plugin or distribution of that name."""
    if ("distillers", name) in registry.owners:
        return [registry.get("distillers", name).name]
    infos = [info for info in registry.host.plugins if name in (info.dist, info.name, info.id)]
    for info in infos:
        if info.status == "failed":
            raise PluginError(info.failure)
        if info.status == "blocked":
            raise ConfigError(f"plugin {info} is blocked, by kdray.toml or KDRAY_BLOCK")
    found = sorted(distiller for info in infos for distiller in info.specs.get("distillers", ()))
    if infos and not found:
        raise ConfigError(f"plugin {infos[0]} has no distillers, and only those can be checked")
    if not found:
        known = {*registry.distillers, *(each for info in registry.host.plugins for each in (info.dist, info.name))}
        message = f"there is no distiller and no plugin '{name}'.{did_you_mean(name, known - {''})}"
        raise PluginError(f"{message}{registry.host.what_failed()}") if registry.host.failed else ConfigError(message)
    return found


def _options(given: list[str]) -> dict:
    from ..config.yaml import scalar

    found: dict = {}
    for text in given:
        path, equals, value = text.partition("=")
        if not (path and equals):
            raise ConfigError(f"'{text}' is no option of a distiller; write option=value")
        *sections, last = path.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        try:
            place[last] = scalar(value)
        except ValueError as error:
            raise ConfigError(f"{text}: {error}") from None
    return found


def _print_tables(found: dict) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for name, verdicts in found.items():
        table = new_table("check", "", "", title=Text(name, "bold"))
        first: dict[str, str] = {}  # what is wrong at the root shows in many checks, and is told once
        for verdict in verdicts:
            mark = Text("passed", "green") if verdict.passed else Text("failed", "bold red")
            before = first.setdefault(verdict.remark, verdict.check)
            again = not verdict.passed and before != verdict.check
            table.add_row(verdict.check, mark, Text(f"as in {before}" if again else verdict.remark))
        console.print(table)
