"""Numbers of reports as text. A spread has `mean` and `deviation`, which is None of a single value."""

from __future__ import annotations


def share(value: dict | None) -> str:
    """A share: `87.12 ± 0.40 %`."""
    if value is None:
        return "–"
    deviation = f" ± {100 * value['deviation']:.2f}" if value["deviation"] is not None else ""
    return f"{100 * value['mean']:.2f}{deviation} %"


def number(value: dict, digits: int = 2) -> str:
    deviation = f" ± {value['deviation']:.{digits}f}" if value["deviation"] is not None else ""
    return f"{value['mean']:.{digits}f}{deviation}"


def count(value: int | None) -> str:
    return f"{value:,}" if value is not None else "–"


def counted(value: int, what: str) -> str:
    """`1 epoch`, `1,200 epochs`"""
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def large(value: int | None) -> str:
    """`12.3 M`"""
    if value is None:
        return "–"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:,.1f} {name}"
    return str(value)
