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
    from .specs import AugmentationSpec, DatasetSpec, DistillerSpec, ModelSpec, OptimizerSpec

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
            self.images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
            self.labels = torch.arange(count) % 2
            self.num_classes, self.class_names, self.channels = 2, ["even", "odd"], 1


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
    when its result changes, so that teacher caches made with the old one are refused.

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
