"""What the registration hooks return: a name, and the thing it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .options import Options

if TYPE_CHECKING:
    from torch import nn

    from .distiller import Distiller
    from .tracker import Tracker


@dataclass(frozen=True)
class Layers:
    """Where a network's outputs are tapped, as dotted module paths.

    A path means that module's output; `path:input` means what goes into it. `head` is the last linear layer; the
    embedding is what goes into it unless a path says otherwise. An empty `head` means: the last `nn.Linear`. `last_map`
    is the map whose spatial mean is the embedding; empty: the last of `features`.
    """

    head: str = ""
    embedding: str = ""
    features: tuple[str, ...] = ()
    preactivations: tuple[str, ...] = ()
    last_map: str = ""


@dataclass(frozen=True)
class DistillerSpec:
    """A loss. Its options, requirements and documentation are on the class.

    summary: one line for lists; without it the first line of the docstring of the class's module.
    """

    name: str
    cls: type[Distiller]
    summary: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """A network: `build(num_classes=…, in_channels=…, weights=…, options=…)` returns an `nn.Module` that maps (B, C,
    H, W) to logits."""

    name: str
    build: Callable[..., nn.Module]
    layers: Layers = Layers()
    Options: type[Options] = Options
    summary: str = ""
    weights: tuple[str, ...] = ()
    """Names of published weights that `weights:` may ask for (they may be downloaded)."""
    normalize: Callable[[str], tuple[tuple[float, ...], tuple[float, ...]]] | None = None
    """For published weights: the (mean, deviation) they were trained with, by the weights' name."""


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: `load(options, path, split)` with split "train" or "test" returns a `kdray.data.Source`."""

    name: str
    load: Callable[..., Any]
    Options: type[Options] = Options
    summary: str = ""
    mean: tuple[float, ...] | None = None
    """Channel means of pictures scaled to 0..1; None when the user or the training set must tell."""
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class AugmentationSpec:
    """An augmentation: `cls(options)`, see `kdray.data.augment.Augmentation`."""

    name: str
    cls: type


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: `build(parameters, options)`; `options.lr` is the base learning rate that the schedule scales.

    parameters: a list of them, or of groups (`{"params": [...]}`) where some are in shares (`scale.shard`)."""

    name: str
    build: Callable[..., Any]
    Options: type[Options]
    summary: str = ""


@dataclass(frozen=True)
class TrackerSpec:
    """What follows a run: `cls(options, run)`, see `kdray.Tracker`."""

    name: str
    cls: type[Tracker]
    Options: type[Options] = Options
    summary: str = ""


@dataclass(frozen=True)
class SearchSpaceSpec:
    """What `kdray tune` tries of a loss where the config writes no space.

    name: of the distiller. space: option (or `weight`) to how it is drawn, as in `tune.space` of a config:
    `{"temperature": {"loguniform": [1.0, 16.0]}}`.
    """

    name: str
    space: dict[str, dict]


@dataclass(frozen=True)
class CommandSpec:
    """A further verb of the command line: `function` is a command of Typer, whose parameters are its arguments and
    options."""

    name: str
    function: Callable[..., Any]
    help: str = ""
    """Shown by `kdray list commands` and above the options in `kdray NAME --help`. Default: the docstring."""
