"""What the trials of a search amount to: the line of each as it ends, the table at the end, results.parquet."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

UP = ("validation/top1", "validation/top5")
"""The metrics of which more is better; of all others less is."""


@dataclass(frozen=True)
class Trial:
    """values: what was tried, by dotted path. metrics: as of the epoch that counts for the trial; empty where it has
    failed before. history: the metrics of each epoch, and its number under `epoch`."""

    number: int
    state: str
    """finished, stopped (early, by the scheduler), failed or unfinished."""
    epochs: int
    values: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    path: str = ""
    """Its run folder."""
    history: list[dict] = field(default_factory=list)


def ranked(trials: list[Trial], metric: str) -> list[Trial]:
    """The best first; those without the metric last, in the order of their numbers."""
    sign = -1 if metric in UP else 1
    return sorted(trials, key=lambda t: (metric not in t.metrics, sign * t.metrics.get(metric, 0.0), t.number))


def short(path: str) -> str:
    """A dotted path as a heading."""
    return path.removeprefix("losses.")


def shown(metric: str, value: float) -> str:
    """A metric in words: accuracies in per cent."""
    if metric in UP:
        return f"{value:.2%}"
    return f"{value:,.0f}" if metric == "parameters" else f"{value:.4g}"


def value_text(value: Any) -> str:
    """What was tried, in a few digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def trial_line(trial: Trial, done: int, total: int, metrics: list[str]) -> str:
    """`  12/16  trial 7: 91.20% after 9 epochs (stopped)  crd.temperature 0.07, optimizer.lr 0.1`"""
    tried = ", ".join(f"{short(path)} {value_text(value)}" for path, value in trial.values.items())
    got = ", ".join(shown(metric, trial.metrics[metric]) for metric in metrics if metric in trial.metrics)
    how = {"finished": "", "stopped": " (stopped early)"}.get(trial.state, f" ({trial.state})")
    after = f" after {trial.epochs} epoch{'s' if trial.epochs != 1 else ''}"
    line = f"  {done:>{len(str(total))}}/{total}  trial {trial.number}: {got or 'nothing'}{after}{how}  {tried}"
    return f"{line}\n    {first_line(trial.error)}" if trial.error else line


def first_line(error: str) -> str:
    return next((line.strip() for line in error.splitlines() if line.strip()), "no message")


def table(trials: list[Trial], metrics: list[str]) -> Table:
    """All trials, the best first. Errors stand below the table, each with the number of its trial."""
    from rich.table import Table

    paths = list(dict.fromkeys(path for trial in trials for path in trial.values))
    found = Table(title=f"{len(trials)} trials", title_justify="left", box=None, pad_edge=False)
    for head in ("trial", *metrics, "epochs", *map(short, paths), "end"):
        lines = head.replace(".", "\n").replace("/", "\n")
        found.add_column(lines, justify="left" if head == "end" else "right", overflow="fold", vertical="bottom")
    for trial in ranked(trials, metrics[0]):
        got = [shown(metric, trial.metrics[metric]) if metric in trial.metrics else "" for metric in metrics]
        tried = [value_text(trial.values[path]) if path in trial.values else "" for path in paths]
        found.add_row(str(trial.number), *got, str(trial.epochs), *tried, trial.state)
    if failed := [trial for trial in trials if trial.error]:
        found.caption = "\n".join(f"trial {trial.number} failed: {first_line(trial.error)}" for trial in failed)
        found.caption_justify = "left"
    return found


def write_results(trials: list[Trial], file: Path) -> None:
    """A row a trial: trial, state, epochs, a column a metric, a column a path of the space, seconds, error, path.

    A reader sees the old file or the new one, never a part. Values that are neither all numbers nor all text are JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = list(dict.fromkeys(metric for trial in trials for metric in trial.metrics))
    paths = list(dict.fromkeys(path for trial in trials for path in trial.values))
    columns = {"trial": pa.array([t.number for t in trials], pa.int64())}
    columns["state"] = pa.array([t.state for t in trials], pa.string())
    columns["epochs"] = pa.array([t.epochs for t in trials], pa.int64())
    columns |= {metric: pa.array([t.metrics.get(metric) for t in trials], pa.float64()) for metric in metrics}
    columns |= {path: pa.array(_alike([t.values.get(path) for t in trials])) for path in paths}
    columns["seconds"] = pa.array([t.seconds for t in trials], pa.float64())
    columns["error"] = pa.array([t.error for t in trials], pa.string())
    columns["path"] = pa.array([t.path for t in trials], pa.string())
    part = file.with_name(f".writing-{file.name}")
    pq.write_table(pa.table(columns), part)
    os.replace(part, file)


def _alike(values: list) -> list:
    """The values as one type that a column can have."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [None if v is None else float(v) for v in values] if float in kinds else values
    if len(kinds) == 1 and kinds <= {str, bool}:
        return values
    return [None if v is None else json.dumps(v) for v in values]
