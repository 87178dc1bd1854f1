"""The hooks of kdray: what a plugin may add, and what it may be told.

A plugin is a module with functions of these names, marked `@hookimpl`. A package offers it as an entry point of the
group `kdray`; a file or folder is named under `[plugins] load` in kdray.toml. A hook may take fewer arguments than
listed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .specs import (
        AugmentationSpec,
        CommandSpec,
        DatasetSpec,
        DistillerSpec,
        ModelSpec,
        OptimizerSpec,
        SearchSpaceSpec,
        TrackerSpec,
    )

PROJECT = "kdray"
HOOK_API = 1
"""Version of these hooks. It rises when a hook or an argument is removed; a plugin may state `kdray_api = 1`."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def kdray_distillers() -> Iterable[DistillerSpec]:
    """Losses, each named under `losses` of a config.

    Runs once in the driver and in every worker. Returns `DistillerSpec(name, cls)`.

    ```python
    import torch.nn.functional as F
    from pydantic import Field

    from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


    class LogitMSEOptions(Options):
        scale: float = Field(1.0, gt=0, description="Factor of the teacher's logits.")


    class LogitMSE(Distiller):
        Options = LogitMSEOptions
        requires = Requires(student={"logits"}, teacher={"logits"})

        def forward(self, student, teacher, batch, step):
            return F.mse_loss(student.logits, self.options.scale * teacher.logits)


    @hookimpl
    def kdray_distillers():
        return [DistillerSpec("logit_mse", LogitMSE)]
    ```
    """


@hookspec
def kdray_models() -> Iterable[ModelSpec]:
    """Networks, each named as `model` under `student` or `teacher`.

    Runs once in the driver and in every worker; `build` runs only for the networks of the run. Returns
    `ModelSpec(name, build, layers)`, where `layers` says which modules give the embedding and the feature maps.

    ```python
    from pydantic import Field
    from torch import nn

    from kdray import Layers, ModelSpec, Options, hookimpl


    class TinyOptions(Options):
        width: int = Field(16, gt=0, description="Channels of the convolution.")


    def build(num_classes, in_channels, weights, options):
        return nn.Sequential(
            nn.Conv2d(in_channels, options.width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(options.width, num_classes),
        )


    @hookimpl
    def kdray_models():
        layers = Layers(head="4", features=("1",))
        return [ModelSpec("tiny", build, layers, Options=TinyOptions, summary="One convolution.")]
    ```
    """


@hookspec
def kdray_datasets() -> Iterable[DatasetSpec]:
    """Data sets, each named as `data.name`.

    Runs once in the driver and in every worker; `load` runs only for the data set of the run. Returns
    `DatasetSpec(name, load)`; `load(options, path, split)` with split "train" or "test" returns a `kdray.Source`.

    ```python
    import torch
    from pydantic import Field

    from kdray import DatasetSpec, Options, Source, hookimpl


    class NoiseOptions(Options):
        count: int = Field(100, gt=0, description="Pictures in each split.")


    class Noise(Source):
        def __init__(self, count, split):
            generator = torch.Generator().manual_seed(0 if split == "train" else 1)
            images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
            super().__init__(torch.arange(count) % 2, ["even", "odd"], channels=1, images=images)


    def load(options, path, split):
        return Noise(options.count, split)


    @hookimpl
    def kdray_datasets():
        return [DatasetSpec("noise", load, Options=NoiseOptions, summary="Random pictures.", mean=(0.5,), std=(0.29,))]
    ```
    """


@hookspec
def kdray_augmentations() -> Iterable[AugmentationSpec]:
    """Augmentations, each named in the lists `data.augment` and `data.evaluate`.

    Runs once in the driver and in every worker. Returns `AugmentationSpec(name, cls)` with a subclass of
    `kdray.Augmentation`. An augmentation must be a pure function of the pictures and of the `draws` uniform numbers
    that it is handed for each: that is what keeps a sample's picture the same at any number of workers. Raise `version`
    when its result changes, so that teacher caches made with the old one are refused. One that makes few pictures of a
    sample may number them (`variants`, as here): a cache then stores each once, whatever the epochs that show it.

    ```python
    import torch
    from pydantic import Field

    from kdray import Augmentation, AugmentationSpec, Options, hookimpl


    class InvertOptions(Options):
        p: float = Field(0.5, ge=0, le=1, description="Share of the pictures that are inverted.")


    class Invert(Augmentation):
        Options = InvertOptions
        version = 1
        draws = 1
        variants = 2

        def variant(self, u):
            return (u[:, 0] < self.options.p).long()

        def numbers(self, variant):
            return torch.where(variant == 1, 0.0, 1.0).double()[:, None]

        def __call__(self, images, u):
            return torch.where(u[:, 0, None, None, None] < self.options.p, 255 - images, images)


    @hookimpl
    def kdray_augmentations():
        return [AugmentationSpec("invert", Invert)]
    ```
    """


@hookspec
def kdray_optimizers() -> Iterable[OptimizerSpec]:
    """Optimizers, each named as `optimizer.name`.

    Runs once in the driver and in every worker. Returns `OptimizerSpec(name, build, Options)`. The options must have
    `lr`, the base learning rate, which the schedule scales.

    ```python
    import torch
    from pydantic import Field

    from kdray import Options, OptimizerSpec, hookimpl


    class RMSpropOptions(Options):
        lr: float = Field(gt=0, description="Base learning rate.")
        alpha: float = Field(0.99, gt=0, lt=1, description="Decay of the running mean of squared gradients.")


    def build(parameters, options):
        return torch.optim.RMSprop(parameters, lr=options.lr, alpha=options.alpha)


    @hookimpl
    def kdray_optimizers():
        return [OptimizerSpec("rmsprop", build, RMSpropOptions, summary="RMSprop of torch.")]
    ```
    """


@hookspec
def kdray_trackers() -> Iterable[TrackerSpec]:
    """What follows a run, each named in the list `trackers`.

    Runs once in the driver and in every worker; `cls` is made on the driver alone. Returns
    `TrackerSpec(name, cls, Options, summary)` with a subclass of `kdray.Tracker`: made when a run starts to train or is
    resumed, it hears of every row of the metrics file, and of the end. `check` runs before anything is written and may
    raise ConfigError, for instance where a package is missing; an exception of the other methods is told once, and the
    run goes on without that tracker. `Tracker.scalars(row)` gives the numbers of a row by the names of their curves.

    ```python
    from pathlib import Path

    from pydantic import Field

    from kdray import Options, Tracker, TrackerSpec, hookimpl


    class CSVOptions(Options):
        curve: str = Field("test/top1", description="The curve that is written.")


    class CSV(Tracker):
        def row(self, row):
            numbers = self.scalars(row)
            if self.options.curve in numbers:
                with Path(self.run["path"], "curve.csv").open("a") as file:
                    file.write(f"{row['step']},{numbers[self.options.curve]}\\n")

        def close(self, state):
            Path(self.run["path"], "curve.txt").write_text(state)


    @hookimpl
    def kdray_trackers():
        return [TrackerSpec("csv", CSV, CSVOptions, summary="One curve as a table.")]
    ```
    """


@hookspec
def kdray_commands() -> Iterable[CommandSpec]:
    """Further verbs of the command line: `kdray NAME`.

    Runs once in the driver and in every worker; `function` runs only when its verb is given. Returns
    `CommandSpec(name, function, help)`. The function is a command of Typer: its parameters are the arguments and
    options of the command line. kdray's own verbs cannot be replaced, and plugins are loaded only for a verb that is
    none of them, so that `kdray --help` stays quick; `kdray list commands` shows those of plugins.

    ```python
    from pathlib import Path
    from typing import Annotated

    import typer

    from kdray import CommandSpec, ConfigError, hookimpl


    def size(run: Annotated[Path, typer.Argument(help="Folder of a run.")]):
        if not run.is_dir():
            raise ConfigError(f"there is no folder {run}")
        typer.echo(sum(file.stat().st_size for file in run.rglob("*") if file.is_file()))


    @hookimpl
    def kdray_commands():
        return [CommandSpec("size", size, help="Bytes of a run's folder.")]
    ```
    """


@hookspec
def kdray_search_spaces() -> Iterable[SearchSpaceSpec]:
    """What `kdray tune` tries of a loss, where the config writes no `tune.space`.

    Runs once in the driver and in every worker. Returns `SearchSpaceSpec(name, space)`: the name of a distiller, of
    this plugin or another, and for its options (or `weight`) how they are drawn, as in `tune.space` of a config. For
    each loss of the config these become `losses.<label>.<option>`. One distiller has one such space.

    ```python
    from kdray import SearchSpaceSpec, hookimpl


    @hookimpl
    def kdray_search_spaces():
        return [SearchSpaceSpec("sp", {"weight": {"loguniform": [300.0, 30000.0]}})]
    ```
    """


@hookspec
def kdray_configure(config: dict) -> None:
    """A config is loaded and checked, and its run is about to be built.

    Runs on the driver, never in a worker, before anything is written; also at `kdray resume`, at `--dry-run`, and for
    the runs of a teacher and of a baseline that are trained on the way. `config` is the resolved config as a plain
    dict, a copy: changing it changes nothing. A ConfigError refuses the run; any other exception stops the command as
    an error of the plugin.

    ```python
    from kdray import ConfigError, hookimpl


    @hookimpl
    def kdray_configure(config):
        if config["schedule"]["epochs"] > 500:
            raise ConfigError("schedule.epochs: this cluster is shared, take 500 at most")
    ```
    """


@hookspec
def kdray_run_started(run: dict) -> None:
    """A run begins, or goes on after `kdray resume`.

    Runs on the driver, never in a worker, before the workers start. `run` has `name`, `path` (the run's folder) and
    `config` (the resolved config as a plain dict). An exception here is reported and does not stop the run.

    ```python
    import time
    from pathlib import Path

    from kdray import hookimpl


    @hookimpl
    def kdray_run_started(run):
        Path(run["path"], "started.txt").write_text(time.ctime())
    ```
    """


@hookspec
def kdray_step_finished(run: dict, metrics: dict) -> None:
    """A step whose loss terms are logged is over: every `engine.log_every` of them.

    Runs on the driver, never in a worker, after the step's metrics are written, and not at once: the driver looks
    several times a second. `run` is that of `kdray_run_started`; `metrics` is the step's record in the run's metrics
    file: `epoch`, `step`, and `terms` by name. Steps since the last checkpoint are told again when a lost worker has
    made them happen again. An exception here is reported and does not stop the run.

    ```python
    import math

    from kdray import hookimpl


    @hookimpl
    def kdray_step_finished(run, metrics):
        if not all(math.isfinite(value) for value in metrics["terms"].values()):
            print(f"{run['name']}: step {metrics['step']} is lost: {metrics['terms']}")
    ```
    """


@hookspec
def kdray_epoch_finished(run: dict, metrics: dict) -> None:
    """An epoch is over and evaluated.

    Runs on the driver, never in a worker, after the epoch's metrics are written. `run` is that of `kdray_run_started`;
    `metrics` is the epoch's record in the run's metrics file: `epoch` and numbers by name. An exception here is
    reported and does not stop the run.

    ```python
    import json
    from pathlib import Path

    from kdray import hookimpl


    @hookimpl
    def kdray_epoch_finished(run, metrics):
        with Path(run["path"], "mine.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\\n")
    ```
    """


@hookspec
def kdray_checkpoint_saved(run: dict, path: str) -> None:
    """A checkpoint is written whole.

    Runs on the driver, never in a worker; steps after it may have been told already, since the training goes on while
    it is written. `run` is that of `kdray_run_started`; `path` is the checkpoint's folder, which is removed when
    `checkpoint.keep` newer ones are there: copy what must stay. An exception here is reported and does not stop the
    run.

    ```python
    import shutil
    from pathlib import Path

    from kdray import hookimpl


    @hookimpl
    def kdray_checkpoint_saved(run, path):
        shutil.copy(Path(path, "student.safetensors"), Path(run["path"], "newest.safetensors"))
    ```
    """


@hookspec
def kdray_run_finished(run: dict, summary: dict) -> None:
    """A run has reached its last epoch.

    Runs on the driver, never in a worker, when all files of the run are written. `run` is that of `kdray_run_started`;
    `summary` holds the final numbers that the command prints. An exception here is reported and does not fail the run.

    ```python
    import json
    from pathlib import Path

    from kdray import hookimpl


    @hookimpl
    def kdray_run_finished(run, summary):
        Path(run["path"], "mine.json").write_text(json.dumps(summary))
    ```
    """


@hookspec
def kdray_run_failed(run: dict, error: BaseException) -> None:
    """A run has failed or was interrupted.

    Runs on the driver, never in a worker. `run` is that of `kdray_run_started`; `error` is the exception that the user
    is about to see. An exception here is reported beside it, never in its place.

    ```python
    from pathlib import Path

    from kdray import hookimpl


    @hookimpl
    def kdray_run_failed(run, error):
        Path(run["path"], "failed.txt").write_text(f"{type(error).__name__}: {error}")
    ```
    """
