"""How tables look that list, compare or check; a run's result has a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def new_table(*columns: str, title: str | Text | None = None) -> Table:
    """An empty one: heads over a line, without a frame, the title on the left."""
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
