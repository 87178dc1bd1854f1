"""What Ray Tune tells the driver of its trials, passed on to the terminal and to their folders."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ray.tune import Callback

from ...run.asking import STOP, asked
from ...run.folder import RunFolder
from ...run.trials import Screen
from .stopping import stop


class Telling(Callback):
    """Ray Tune writes its callbacks down, and reads them again when a search goes on: so they hold nothing."""

    folder: ClassVar[Path]
    screen: ClassVar[Screen]

    def on_step_begin(self, iteration, trials, **info) -> None:
        """Several times a second, whatever the trials do."""
        if asked([self.folder]) == STOP:
            stop(trials)

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        self.screen.start(str(trial))

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self._end(trial, "stopped", {})

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        error = f"its process was lost, often for memory: {trial.get_error()}"
        self._end(trial, "failed", {"error": error})

    def _end(self, trial, state: str, why: dict) -> None:
        """A trial that has ended by itself has said so in its folder."""
        run = RunFolder(self.folder / "trials" / str(trial))
        if run.path.exists() and run.status["state"] == "running":
            run.set_status(state, **why)
        if (run.path / "values.json").exists():
            self.screen.end(str(trial))
