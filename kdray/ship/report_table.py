"""The rows of a report's table, and its curves: what runs wrote down of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from statistics import mean, median, stdev

from ..errors import ConfigError, KdrayError
from ..registry import Registry
from ..run.folder import RunFolder
from ..run.summary import teachers_of
from .finished import Finished


def spread(values: list[float]) -> dict:
    """values, their mean, and their standard deviation: None of a single one."""
    return {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else None, "values": values}


def student_row(role: str, what: str, runs: list[Finished], macs: dict[Path, int]) -> dict:
    first = runs[0]
    return {
        "role": role,
        "what": what,
        "model": first.config.student.model,
        "runs": [one.run.name for one in runs],
        "parameters": first.summary["parameters"],
        **_of_file(first.run.weights(), macs),
        "pictures_per_second": spread([_rate(one) for one in runs]),
        "last": spread([one.summary["last"]["top1"] for one in runs]),
        "best": spread([one.summary["best"]["test_top1"] for one in runs]),
        "best_by": first.summary["best"]["split"],
    }


def teacher_rows(one: Finished, registry: Registry, macs: dict[Path, int]) -> Iterator[tuple[tuple, dict]]:
    """Of each teacher of a run what tells it from others, and its row."""
    for what, numbers in teachers_of(one.summary):
        file = weights_of(one, what.removeprefix("teacher "))
        trained = run_of(file, registry)
        row = {
            "role": "teacher",
            "what": what,
            "model": numbers["model"],
            "runs": [trained.run.name] if trained else [],
            "parameters": numbers["parameters"],
            **_of_file(file, macs),
            "pictures_per_second": spread([_rate(trained)]) if trained else None,
            "last": spread([numbers["top1"]]),
            "best": None,
            "best_by": None,
        }
        yield (what, numbers["model"], file), row


def weights_of(one: Finished, name: str) -> Path | None:
    """The file of a teacher's weights, where one is known. The average of teachers has none."""
    if name not in one.config.all_teachers:
        return None
    try:
        return one.teacher_weights(name)
    except ConfigError:
        return None


def run_of(weights: Path | None, registry: Registry) -> Finished | None:
    """The run that made them, where it is at hand and whole."""
    if weights is None or not (weights.parent / "status.json").exists():
        return None
    try:
        return Finished.read(RunFolder(weights.parent), registry)
    except KdrayError:
        return None


def _of_file(weights: Path | None, macs: dict[Path, int]) -> dict:
    return {
        "macs": macs.get(weights),
        "bytes": weights.stat().st_size if weights and weights.is_file() else None,
    }


def _rate(one: Finished) -> float:
    return median(row["pictures_per_second"] for row in one.epochs)


def curves(runs: list[Finished]) -> dict:
    """By epoch, mean and deviation over the runs of the accuracies, the loss and each of its terms."""
    terms = dict.fromkeys(name for one in runs for row in one.epochs for name in row["terms"])
    return {
        "test": _curve(runs, lambda row: row["test"]["top1"]),
        "validation": _curve(runs, lambda row: row["validation"]["top1"] if row.get("validation") else None),
        "loss": _curve(runs, lambda row: row["loss"]),
        "terms": {name: _curve(runs, lambda row, name=name: row["terms"].get(name)) for name in terms},
    }


def _curve(runs: list[Finished], pick: Callable[[dict], float | None]) -> dict:
    by_epoch: dict[int, list[float]] = {}
    for one in runs:
        for row in one.epochs:
            if (value := pick(row)) is not None and isfinite(value):
                by_epoch.setdefault(row["epoch"], []).append(value)
    spreads = [spread(by_epoch[epoch]) for epoch in sorted(by_epoch)]
    return {
        "epochs": sorted(by_epoch),
        "mean": [one["mean"] for one in spreads],
        "deviation": [one["deviation"] for one in spreads],
    }
