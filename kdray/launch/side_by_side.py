"""Many runs, each to its end, side by side: trials of Ray Tune that report nothing, since each run has its own folder.

What a run is given, and how many there are at a time, is a `Share`. One that fails says why in a file, and does not end
the others; one whose process is lost goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from ray import tune

from ..config.project import Project
from ..config.schema import Config
from ..errors import ConfigError
from ..run.asking import STOP, asked
from ..run.console import Console
from ..run.folder import RunFolder
from .code import Code
from .experiment import Experiment
from .tune.share import Share
from .tune.stopping import fit, stop
from .tune.tuner import SETTINGS

STATE = ".ray"
"""Ray Tune's own folder, while it is at work."""


@dataclass(frozen=True)
class Todo:
    """What the driver sends to each process. configs: by run, a name beneath the folder of runs; paths: their folders.
    folder: where it is told what failed."""

    configs: dict[str, Config]
    paths: dict[str, Path]
    folder: Path
    project: Project
    command: str
    code: Code
    threads: int

    def failure(self, run: str) -> Path:
        return failure(self.folder, run)


def failure(folder: Path, run: str) -> Path:
    """The file that says why a run failed, where it did."""
    return folder / "failed" / f"{run.replace('/', '--')}.txt"


def tell(file: Path, error: str | None) -> None:
    if error is None:
        file.unlink(missing_ok=True)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(error)


def run_all(todo: Todo, share: Share, console: Console) -> None:
    """Each run to its end, or to its failure."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told in the folder
    shutil.rmtree(todo.folder / STATE, ignore_errors=True)  # nothing in it is needed to go on
    Telling.todo, Telling.console, Telling.ended = todo, console, 0
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(one, todo=todo), share.of_a_trial()),
            param_space={"run": tune.grid_search(list(todo.configs))},
            tune_config=tune.TuneConfig(
                search_alg=tune.search.BasicVariantGenerator(max_concurrent=share.at_once), reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=STATE,
                storage_path=str(todo.folder),
                verbose=0,
                callbacks=[Telling()],
                failure_config=tune.FailureConfig(
                    max_failures=max(config.scale.max_failures for config in todo.configs.values())
                ),
            ),
        )
        fit(tuner, stopped="stopped among its runs")
    finally:
        shutil.rmtree(todo.folder / STATE, ignore_errors=True)


def one(drawn: dict, todo: Todo) -> None:
    """The function that Ray Tune runs, in a process that may have run others: a run begun, or gone on with."""
    name, error = drawn["run"], None
    try:
        torch.set_num_threads(todo.threads)
        experiment = Experiment(todo.code.load(), todo.project, Console(), todo.command)
        run, config = RunFolder(todo.paths[name]), todo.configs[name]
        config = config.model_copy(update={"scale": config.scale.model_copy(update={"num_workers": 0})})
        if run.is_alive:
            raise ConfigError(f"{run.path} is trained just now by process {run.status['pid']}; wait for it")
        if (run.path / "status.json").exists():
            experiment._advance(run, config)
        else:
            shutil.rmtree(run.path, ignore_errors=True)
            experiment._start(config, name)
    except Exception as raised:
        error = str(raised) or type(raised).__name__
    tell(todo.failure(name), error)
    tune.report({"ended": 1})


class Telling(tune.Callback):
    """A line for each run that has ended. Ray Tune writes its callbacks down: so they hold nothing."""

    todo: ClassVar[Todo]
    console: ClassVar[Console]
    ended: ClassVar[int]

    def on_step_begin(self, iteration, trials, **info) -> None:
        """Several times a second, whatever the runs do."""
        if asked([self.todo.folder]) == STOP:
            stop(trials)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self._line(trial.config["run"])

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        tell(self.todo.failure(trial.config["run"]), "its process was lost, often for memory")
        self._line(trial.config["run"])

    def _line(self, name: str) -> None:
        cls, file = type(self), self.todo.failure(name)
        cls.ended += 1
        if file.exists():
            said = f"failed: {file.read_text().splitlines()[0]}"
        else:
            summary = RunFolder(self.todo.paths[name]).summary
            said = f"last {summary['last']['top1']:.2%}, best {summary['best']['test_top1']:.2%}"
        self.console.say(f"  {cls.ended}/{len(self.todo.configs)} {name}: {said}")
