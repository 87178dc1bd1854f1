"""The base class of what follows a run: curves in a folder, a server of experiments, a chat."""

from __future__ import annotations

from typing import Literal

from .options import Options


class Tracker:
    """Lives on the driver while a run trains; made anew when it is resumed.

    An exception in any method is told once, the tracker is left out from then on, and the run goes on.
    """

    @classmethod
    def check(cls, options: Options) -> None:
        """Called before anything is written. Raises ConfigError when it cannot work: a package is not installed."""

    def __init__(self, options: Options, run: dict):
        """`run` has `name`, `path` (the run's folder, where a tracker may keep what it needs to go on) and `config`."""
        self.options, self.run = options, run

    def row(self, row: dict) -> None:
        """A new row of the run's metrics file. Its `kind` is step, stage (an epoch of a first stage), epoch, teacher or
        checkpoint; `step` counts batches.

        After a worker was lost, and when a run is resumed, the steps since the last checkpoint come again.
        """
        raise NotImplementedError

    def close(self, state: Literal["finished", "interrupted", "failed"]) -> None:
        """Called once, after the last row."""

    @staticmethod
    def scalars(row: dict) -> dict[str, float]:
        """The numbers of a row by the names of their curves: test/top1, epoch/lr, step/kd."""
        kind = row["kind"]
        if kind not in ("step", "stage", "epoch"):
            return {}
        place = f"{kind}/{row['stage']}" if "stage" in row else kind
        found = {f"{place}/{name}": value for name, value in row["terms"].items()}
        for name in ("loss", "lr", "pictures_per_second"):
            if name in row:
                found[f"{place}/{name}"] = row[name]
        for split in ("validation", "test"):
            if split in row:
                found |= {f"{split}/{name}": row[split][name] for name in ("top1", "top5", "loss")}
        return found
