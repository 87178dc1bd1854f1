"""Pictures of a search: how it got on, which values mattered, and which went together.

history.png      the metric of each trial, and the best so far
importance.png   share of each value in what a random forest can tell about the metric
parallel.png     a line a trial through its values, coloured by the metric
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import ceil, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .search import UP, Trial, short, shown, value_text

if TYPE_CHECKING:
    from ..config.tune import Dimension

LEAST = 5
"""Trials below which nothing is said of importance."""
_COLOURS = {"finished": "#1f77b4", "stopped": "#b8b8b8", "unfinished": "#d9d9d9"}


def draw(trials: list[Trial], space: dict[str, Dimension], metric: str, folder: Path) -> list[Path]:
    """Write the pictures into `folder`, and return their paths; those that so few trials cannot fill are left out."""
    measured = [trial for trial in trials if metric in trial.metrics]
    axes = [Axis(path, dimension, measured) for path, dimension in space.items()] if measured else []
    axes = [axis for axis in axes if axis.varies]
    drawn = {"history.png": _history(measured, metric)} if measured else {}
    alike = at_one_epoch(measured) if len(measured) >= LEAST else []
    if axes and len(alike) >= LEAST and len({trial.metrics[metric] for trial in alike}) > 1:
        drawn["importance.png"] = _importance(alike, axes, metric)
    if axes and len(measured) > 1:
        drawn["parallel.png"] = _parallel(measured, axes, metric)
    files = []
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=120)
        files.append(folder / name)
    return files


class Axis:
    """A dimension of the space as numbers 0..1: the ends of a range, or places in a row of values."""

    def __init__(self, path: str, dimension: Dimension, trials: list[Trial]):
        self.path, self.dimension = path, dimension
        self.tried = [trial.values[path] for trial in trials if path in trial.values]
        self.varies = len({json.dumps(value) for value in self.tried}) > 1
        if dimension.is_discrete:
            self.row = [json.dumps(value) for value in dimension.values]
        else:
            both = [*dimension.values, *self.tried]  # population-based training leaves the range
            self.low, self.high = self._scale(min(both)), self._scale(max(both))

    def _scale(self, value: float) -> float:
        return log(value) if self.dimension.is_log else float(value)

    def place(self, value: Any) -> float:
        if self.dimension.is_discrete:
            return self.row.index(json.dumps(value)) / max(1, len(self.row) - 1)
        return (self._scale(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        return [(self.place(value), value_text(value)) for value in self.dimension.values]


def at_one_epoch(trials: list[Trial]) -> list[Trial]:
    """Trials as of the last epoch that half of them have come to, without those that have not: a trial that was
    stopped early is compared with what others were then."""
    epoch = sorted((trial.epochs for trial in trials), reverse=True)[max(LEAST, ceil(len(trials) / 2)) - 1]
    return [
        replace(trial, epochs=epoch, metrics=row) for trial in trials for row in trial.history if row["epoch"] == epoch
    ]


def importances(trials: list[Trial], axes: list[Axis], metric: str) -> dict[str, float]:
    """By path, how much worse a random forest tells the metric when the values of that path are exchanged between
    trials; shares of 1."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    x = np.array(
        [[axis.place(t.values[axis.path]) if axis.path in t.values else -1.0 for axis in axes] for t in trials]
    )
    y = np.array([trial.metrics[metric] for trial in trials])
    forest = RandomForestRegressor(200, random_state=0).fit(x, y)
    lost = permutation_importance(forest, x, y, n_repeats=20, random_state=0).importances_mean.clip(min=0)
    return {axis.path: float(share) for axis, share in zip(axes, lost / max(lost.sum(), 1e-12))}


def _history(trials: list[Trial], metric: str) -> Figure:
    figure, plot = _figure(7, 4)
    numbers = [trial.number for trial in trials]
    values = np.array([trial.metrics[metric] for trial in trials])
    for state in dict.fromkeys(trial.state for trial in trials):
        chosen = [trial.state == state for trial in trials]
        label = {"stopped": "stopped early"}.get(state, state)
        plot.scatter(np.array(numbers)[chosen], values[chosen], label=label, color=_COLOURS.get(state, "#d62728"))
    best = (np.maximum if metric in UP else np.minimum).accumulate(values)
    plot.step(numbers, best, where="post", color="#2ca02c", label="best so far")
    plot.set_xlabel("trial")
    _metric_axis(plot, metric)
    plot.xaxis.get_major_locator().set_params(integer=True)
    plot.legend(frameon=False)
    return figure


def _importance(trials: list[Trial], axes: list[Axis], metric: str) -> Figure:
    found = sorted(importances(trials, axes, metric).items(), key=lambda item: item[1])
    figure, plot = _figure(7, 1.4 + 0.4 * len(found))
    bars = plot.barh([short(path) for path, _ in found], [share for _, share in found], color="#1f77b4")
    plot.bar_label(bars, [f"{share:.0%}" for _, share in found], padding=3)
    plot.set_xlim(0, 1.1)
    plot.set_xlabel(f"importance for {metric} after {trials[0].epochs} epochs ({len(trials)} trials)")
    return figure


def _parallel(trials: list[Trial], axes: list[Axis], metric: str) -> Figure:
    values = [trial.metrics[metric] for trial in trials]
    low, high = min(values), max(values)
    figure, plot = _figure(2.2 + 1.7 * len(axes), 4.5)
    colours = matplotlib.colormaps["viridis" if metric in UP else "viridis_r"]
    for trial in sorted(trials, key=lambda t: t.metrics[metric], reverse=metric not in UP):  # the best on top
        share = (trial.metrics[metric] - low) / ((high - low) or 1.0)
        line = [axis.place(trial.values[axis.path]) if axis.path in trial.values else np.nan for axis in axes]
        plot.plot([*line, share], color=colours(share), linewidth=1.5, marker="o", markersize=3)
    ends = [(0.0, shown(metric, low)), (1.0, shown(metric, high))] if high > low else [(0.0, shown(metric, low))]
    for i, ticks in enumerate([*(axis.ticks() for axis in axes), ends]):
        plot.axvline(i, color="#888888", linewidth=0.8, zorder=0)
        for place, text in ticks:
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
            plot.annotate(text, (i, place), (4, 4), textcoords="offset points", fontsize=8, bbox=box, zorder=4)
    plot.set_xticks(range(len(axes) + 1), [*(short(axis.path) for axis in axes), metric], rotation=15, ha="right")
    plot.set_xlim(-0.1, len(axes) + 0.45)
    plot.set_ylim(-0.05, 1.1)
    plot.set_yticks([])
    for side in plot.spines.values():
        side.set_visible(False)
    return figure


def _figure(width: float, height: float):
    """Without pyplot, which keeps every figure and may look for a screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    plot = figure.add_subplot()
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
    return figure, plot


def _metric_axis(plot, metric: str) -> None:
    plot.set_ylabel(metric)
    if metric in UP:
        from matplotlib.ticker import PercentFormatter

        plot.yaxis.set_major_formatter(PercentFormatter(1.0))
