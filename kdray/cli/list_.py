"""`kdray list KIND`: what there is to name in a config, and what has been run."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..run.tables import new_table
from .methods import brief, facts, markdown
from .runs import brief as brief_run


class Kind(StrEnum):
    distillers = "distillers"
    models = "models"
    datasets = "datasets"
    augmentations = "augmentations"
    optimizers = "optimizers"
    trackers = "trackers"
    commands = "commands"
    configs = "configs"
    runs = "runs"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of objects with `name`.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Of distillers: print a page with all that is known of each.")
    ] = False,
) -> None:
    """List what a config can name (distillers, models, datasets, augmentations, optimizers, trackers), the commands of
    plugins, the configs, or the runs.

    Configs are the YAML files under ./configs. Runs are those of the project's run folder, the newest last. With --json
    there is more: papers, published weights, the default and the meaning of each option, the plugin that provides it.

    Examples:

        kdray list distillers

        kdray list models --json
    """
    if as_markdown and (kind is not Kind.distillers or as_json):
        raise typer.BadParameter("--markdown is for `kdray list distillers`, without --json")
    rows, warnings = list_rows(kind)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
    elif as_markdown:
        typer.echo(markdown(rows), nl=False)
    elif rows:
        shown = {Kind.distillers: brief, Kind.runs: brief_run}.get(kind, dict)
        _print_table([shown(row) for row in rows])
    else:
        typer.echo(f"there are no {kind.value}", err=True)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def list_rows(kind: Kind) -> tuple[list[dict], list[str]]:
    """The objects of a kind, and what the user should know besides."""
    if kind is Kind.configs:
        rows = list_configs(Path("configs"))
        return rows, [] if rows else ["there are no YAML files under ./configs"]
    if kind is Kind.runs:
        from ..config.project import find_project
        from ..run.folder import list_runs

        folder = find_project().runs
        rows = list_runs(folder)
        return rows, [] if rows else [f"there are no runs in {folder}"]
    from ..registry import Registry

    registry = Registry.default()
    warnings = registry.conflicts()
    if registry.host.failed:
        names = ", ".join(info.id for info in registry.host.failed)
        warnings.append(f"plugins that failed to load are not listed: {names}. See `kdray plugins`.")
    specs = getattr(registry, kind)
    return [_describe(kind, spec, registry.owners[kind, name][0]) for name, spec in specs.items()], warnings


def list_configs(folder: Path) -> list[dict]:
    """Every YAML file under `folder`: name without suffix, path, and the first line of comment that is no command."""
    rows = []
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        comments = [line.lstrip("# ").strip() for line in lines if line.startswith("#") and line.strip("# ")]
        said = [comment for comment in comments if not comment.startswith("kdray ")]  # the command that runs it
        name = path.relative_to(folder).with_suffix("").as_posix()
        rows.append({"name": name, "path": path.as_posix(), "summary": next(iter(said), "")})
    return rows


def _describe(kind: Kind, spec, owner) -> dict:
    from ..config.sections import options_class, summary_of

    row = {"name": spec.name, "summary": summary_of(spec)}
    if kind is Kind.distillers:
        row |= facts(spec.cls, spec.name)
    if kind is Kind.models:
        row["weights"] = list(spec.weights)
    if kind is not Kind.commands:
        row["options"] = _options(options_class(spec))
    return row | {"plugin": owner.name, "distribution": owner.dist, "version": owner.version}


def _options(cls) -> dict[str, dict]:
    """Name to description and default; `choices` are the options of each form that an option may have."""
    from pydantic_core import to_jsonable_python

    from ..config.explain import models_in

    found = {}
    for name, field in cls.model_fields.items():
        found[name] = {"description": field.description}
        if not field.is_required():
            found[name]["default"] = to_jsonable_python(field.get_default(call_default_factory=True))
        if forms := models_in(field.annotation):
            found[name]["choices"] = {
                form.model_fields[field.discriminator].default if field.discriminator else form.__name__: _options(form)
                for form in forms
            }
    return found


WIDE = 100
"""Columns of text that the table of distillers takes with everything in it."""
_LONG = ("paper", "version", "plugin", "started", "weights")


def _print_table(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.text import Text

    # The rest is for --json: long, told by the order of the rows, or the same in all of them.
    columns = [name for name in rows[0] if name not in _LONG and any(row[name] not in ("", [], {}) for row in rows)]
    if {row.get("distribution") for row in rows} == {"kdray"}:
        columns.remove("distribution")
    console = Console(highlight=False)
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = 10_000  # whoever reads a pipe looks for lines
    if console.width < WIDE and "student / teacher" in columns:
        columns.remove("student / teacher")  # or nothing would be left for the summary
    table = new_table()
    for name in columns:
        least = 16 if "teacher" in name else None  # an output's name is not broken
        table.add_column(
            name, overflow="fold", no_wrap=name in ("name", "cache", "over", "stage", "8x4", "16-2"), min_width=least
        )
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    console.print(table)


def _cell(value) -> str:
    if isinstance(value, list | dict):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.2%}"
    return "" if value is None else str(value)
