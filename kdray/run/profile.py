"""What `--profile` prints: where the time of a command went, and the operators that took most of a step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..clock import Clock, Part
from .tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

COMMAND = "no run"
"""The column of what belongs to none."""
LONGEST = 60
"""Characters of an operator's name."""


def time_table(clock: Clock) -> Table:
    """A row a part of the work, a column a run: seconds, which add up to the time of the command, to rounding."""
    seconds = clock.seconds
    table = new_table(title="where the time went, in seconds")
    runs = sorted(seconds, key=bool)
    for heading in ("", *(run.replace("-", "-\n") or COMMAND for run in runs), "all", "share"):
        table.add_column(heading, justify="right" if heading else "left")
    whole = sum(sum(of_run.values()) for of_run in seconds.values())

    def add(name: str, found: list[float]) -> None:
        cells = (f"{one:.2f}" if one else "" for one in found)
        table.add_row(name, *cells, f"{sum(found):.2f}", f"{sum(found) / whole:.1%}")

    for name in Part:
        found = [seconds[run].get(name, 0.0) for run in runs]
        if any(found):
            add(name, found)
    table.add_section()
    add("all", [sum(seconds[run].values()) for run in runs])
    return table


def operator_table(operators: list[dict], run: str) -> Table:
    """operators: of a row of kind "profile"."""
    table = new_table(title=f"what took most of the traced steps of {run}")
    for heading in ("", "calls", "ms", "share"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in operators:
        table.add_row(_brief(one["name"]), str(one["calls"]), f"{one['seconds'] * 1e3:.2f}", f"{one['share']:.1%}")
    return table


def _brief(name: str) -> str:
    """A kernel's name without its C++ types, which may fill a page."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    while name != (shorter := re.sub(r"<[^<>]*>|(?<=\S)\([^()]*\)", "", name)):
        name = shorter
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
