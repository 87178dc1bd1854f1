"""Ray Tune's schedulers, with two things that they lack: they know what trials had told before an interruption, and a
trial that has failed by itself is not begun again.

Ray Tune does not write a scheduler down: that of a search which goes on is as new. Each trial of the search is added to
it again, ended or not, and what it had told is in its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining

from ...config.space import decode
from ...config.tune import TuneConfig
from ...run.folder import RunFolder
from ...run.trials import numbers
from .trial import saved_epochs, values_of


class Scheduler:
    """folder, settings: of the search; set before it begins or goes on, since the object itself is written down."""

    folder: ClassVar[Path]
    settings: ClassVar[TuneConfig]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.heard: dict[str, int] = {}
        """The last epoch of each trial, by its id. After a pause or a lost process it is told again."""
        self.over: set[str] = set()

    def on_trial_add(self, controller, trial) -> None:
        super().on_trial_add(controller, trial)
        if trial.trial_id in self.over:
            controller.stop_trial(trial)
        elif trial.trial_id not in self.heard:
            told = self._told(trial)
            self.heard[trial.trial_id] = told[-1]["epoch"] if told else 0
            if told:
                self.remember(trial, told)

    def on_trial_error(self, controller, trial) -> None:
        """Before it is added again, where Ray Tune would try it once more."""
        super().on_trial_error(controller, trial)
        if self._run(trial).status["state"] == "failed":
            self.over.add(trial.trial_id)

    def on_trial_result(self, controller, trial, result: dict) -> str:
        if result["epoch"] <= self.heard[trial.trial_id]:
            return self.CONTINUE
        self.heard[trial.trial_id] = result["epoch"]
        return super().on_trial_result(controller, trial, result)

    def remember(self, trial, results: list[dict]) -> None:
        """Take up what a trial told before the interruption; what was decided then is not decided again."""

    def _run(self, trial) -> RunFolder:
        return RunFolder(self.folder / "trials" / str(trial))

    def _told(self, trial) -> list[dict]:
        """What a trial has told and will not tell again; nothing, where its number had other values then."""
        run = self._run(trial)
        if values_of(run) != decode(self.settings, trial.config):
            return []
        if trial.is_finished():
            last = trial.last_result.get("epoch", 0)  # workers of its own may have been ahead
            rows = [row for row in run.rows("epoch") if row["epoch"] <= last]
        else:
            rows = saved_epochs(run)[:-1]
        weights = run.path / "best.safetensors"
        return [{"epoch": row["epoch"], **numbers(row, weights)} for row in rows]


class Fifo(Scheduler, FIFOScheduler):
    pass


class Asha(Scheduler, ASHAScheduler):
    def remember(self, trial, results: list[dict]) -> None:
        for result in results:
            ASHAScheduler.on_trial_result(self, None, trial, result)


class Median(Scheduler, MedianStoppingRule):
    def remember(self, trial, results: list[dict]) -> None:
        self._results[trial] += results


class Population(Scheduler, PopulationBasedTraining):
    """It compares the trials that run, and each of these tells its last epoch again."""

    def on_trial_result(self, controller, trial, result: dict) -> str:
        return PopulationBasedTraining.on_trial_result(self, controller, trial, result)  # epochs may go back
