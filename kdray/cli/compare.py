"""`kdray compare`"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..run.tables import new_table
from .arguments import AsJson


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Two finished runs, or the seeds of two recipes, by name or path.", metavar="RUN..."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show two runs side by side: what differs in their configs, what they came to, and a paired test over seeds.

    A run may have several seeds: where there is no run called kd, `kd` stands for kd-seed0, kd-seed1 and so on, as
    `train --seeds` names them. Of more than two names, runs that differ by the seed alone are one side. The test is a
    paired t-test, two-sided; differences are the second side less the first.

    Examples:

        kdray compare kd crd

        kdray compare kd-seed0 crd-seed0 --json

        kdray compare kd-a kd-b kd-c crd-a crd-b crd-c
    """
    from ..config.project import find_project
    from ..registry import Registry
    from ..run.folder import find_seeds
    from ..ship.compare import compare as beside

    folder = find_project().runs
    found = beside([(name, find_seeds(name, folder)) for name in runs], Registry.default())
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        _show(found)


def _show(found: dict) -> None:
    from rich.console import Console
    from rich.text import Text

    labels = [side["label"] for side in found["sides"]]
    out = Console(highlight=False, soft_wrap=True)

    def table(title: str, rows: list[tuple[str, ...]], **style) -> None:
        shown = new_table(title=title)
        shown.add_column("", no_wrap=True)
        for label in labels:
            shown.add_column(Text(label), overflow="fold", **style)
        for row in rows:
            shown.add_row(*map(Text, row))
        out.print(shown)

    rows = [(one["key"], *(_value(one[side]) if side in one else "–" for side in "ab")) for one in found["differences"]]
    if rows:
        table("what differs in the configs", rows)
    else:
        print("the configs are the same but for names and seeds\n")
    table("what they came to", _results(found["sides"]), justify="right")
    for epoch, test in found["tests"].items():
        if test["difference"]:
            print(f"{epoch} epoch: {_said(test, labels)}")
    for why in dict.fromkeys(test["no_test"] for test in found["tests"].values() if test["no_test"]):
        print(f"no paired t-test: {why}")
    for note in found["notes"]:
        print(f"note: {note}")


def _value(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _results(sides: list[dict]) -> list[tuple[str, ...]]:
    from ..run.wording import count, large, share

    def row(what: str, word) -> tuple[str, ...]:
        return (what, *(word(side) for side in sides))

    return [
        row("seeds", lambda side: ", ".join(map(str, side["seeds"]))),
        row("test accuracy, last epoch", lambda side: share(side["last"])),
        row("test accuracy, best epoch", lambda side: share(side["best"])),
        row("best epoch by", lambda side: f"{side['best_by']} set"),
        row("network", lambda side: side["model"]),
        row("parameters", lambda side: count(side["parameters"])),
        row("file of weights", lambda side: f"{large(side['bytes'])}B"),
        row("pictures/s in training", lambda side: f"{side['pictures_per_second']['mean']:,.0f}"),
    ]


def _said(test: dict, labels: list[str]) -> str:
    seeds = f"seed{'s' if len(test['seeds']) > 1 else ''} {', '.join(map(str, test['seeds']))}"
    said = f"{labels[1]} less {labels[0]}: {100 * test['difference']['mean']:+.2f} points ({seeds})"
    if test["interval"]:
        low, high = (100 * end for end in test["interval"])
        said += f", 95 % interval {low:+.2f} to {high:+.2f}; paired t-test: t = {test['t']:.2f}, p = {test['p']:.2g}"
    return said
