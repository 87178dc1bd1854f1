"""From the `data` section of a config to the splits of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.schema import DataConfig
from ..config.sections import parse_options
from ..errors import ConfigError, PluginError
from ..registry import Registry
from ..specs import DatasetSpec
from .augment import Pipeline
from .normalize import moments
from .source import Source
from .split import Split, divide, hold

__all__ = ["Data", "Split", "load_data"]


@dataclass(frozen=True)
class Data:
    """All that a run needs of its data. mean, std: a number a channel, of pictures scaled to 0..1."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    augment: Pipeline
    """What is done to training pictures."""
    evaluate: Pipeline
    """What is done to pictures of `validation` and `test`."""
    num_classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str]


def load_data(config: DataConfig, seed: int, registry: Registry, data_root: Path) -> Data:
    """data_root: the folder that has one of the data set's name, unless `config.path` says otherwise.

    Raises ConfigError for missing or damaged files, labels and classes that do not fit, and impossible subsets.
    """
    spec = registry.get("datasets", config.name)
    augment, evaluate = (_pipeline(getattr(config, key), key, seed, registry) for key in ("augment", "evaluate"))
    path = Path(config.path).expanduser() if config.path else Path(data_root) / config.name
    train, test = (_load(spec, config, path.absolute(), split) for split in ("train", "test"))
    _check_classes(spec.name, train, test)
    mean, std = _normalisation(config, spec, train)
    chosen, held_out = divide(train.labels, seed, config.validation, config.samples)

    def split(source: Source, ids: torch.Tensor) -> Split:
        return Split(source, ids, hold(source, ids, config.in_memory, config.threads))

    return Data(
        name=config.name,
        train=split(train, chosen),
        validation=split(train, held_out) if len(held_out) else None,
        test=split(test, torch.arange(len(test))),
        augment=augment,
        evaluate=evaluate,
        num_classes=train.num_classes,
        channels=train.channels,
        mean=mean,
        std=std,
        class_names=list(train.class_names),
    )


def _pipeline(entries: Sequence[str | dict[str, dict]], key: str, seed: int, registry: Registry) -> Pipeline:
    steps = []
    for entry in entries:
        if isinstance(entry, dict) and len(entry) != 1:
            raise ConfigError(f"data.{key}: {entry} must be one augmentation: a name, or {{name: {{option: value}}}}")
        ((name, options),) = entry.items() if isinstance(entry, dict) else [(entry, {})]
        cls = registry.get("augmentations", name).cls
        if key == "evaluate" and cls.draws:
            raise ConfigError(f"data.evaluate: {name} is random, and pictures are evaluated as they are: use data.augment")
        steps.append((name, cls(parse_options(cls.Options, options or {}))))
    return Pipeline(steps, seed)


def _load(spec: DatasetSpec, config: DataConfig, path: Path, split: str) -> Source:
    try:
        source = spec.load(parse_options(spec.Options, config.options), path, split)
    except OSError as error:
        expected = f"\nExpected in {path}: {spec.location}." if spec.location else ""
        raise ConfigError(
            f"data set '{spec.name}' ({split}): {error}{expected}\n"
            "Put the files there, or say with data.path where they are."
        ) from error
    where = f"data set '{spec.name}' ({split})"
    if not isinstance(source, Source):
        raise PluginError(f"{where}: load() returned {source!r}; expected a kdray.Source")
    labels = source.labels
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
        raise PluginError(f"{where}: labels must be an int64 tensor (N,)")
    if len(source.class_names) != source.num_classes:
        raise PluginError(f"{where}: {len(source.class_names)} class names for {source.num_classes} classes")
    images = source.images
    if images is not None and (
        images.dtype != torch.uint8 or images.dim() != 4 or images.shape[:2] != (len(labels), source.channels)
    ):
        raise PluginError(
            f"{where}: images are {images.dtype} {tuple(images.shape)}; "
            f"expected torch.uint8 ({len(labels)}, {source.channels}, height, width)"
        )
    if not len(source):
        raise ConfigError(f"{where} is empty: there are no pictures in {path}")
    for index in ((labels < 0) | (labels >= source.num_classes)).nonzero()[:1, 0].tolist():
        raise ConfigError(
            f"{where}: picture {index} has label {labels[index]}; labels must be 0..{source.num_classes - 1}"
        )
    return source


def _check_classes(name: str, train: Source, test: Source) -> None:
    if train.channels != test.channels:
        raise ConfigError(f"data set '{name}': {train.channels} channels in train, {test.channels} in test")
    if train.class_names == test.class_names:
        return
    lines = [f"data set '{name}': train and test must have the same classes, in the same order."]
    for here, there, ours, theirs in (("train", "test", train, test), ("test", "train", test, train)):
        if alone := [c for c in ours.class_names if c not in set(theirs.class_names)]:
            more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
            lines.append(f"  in {here} alone, not in {there}: {', '.join(alone[:5])}{more}")
    raise ConfigError("\n".join(lines))


def _normalisation(config: DataConfig, spec: DatasetSpec, train: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the config, else of the data set, else measured on the whole training set: the same whatever part is used."""
    if config.normalize:
        for key in ("mean", "std"):
            if len(numbers := getattr(config.normalize, key)) != train.channels:
                raise ConfigError(
                    f"data.normalize.{key} has {len(numbers)} numbers; the pictures of '{spec.name}' have "
                    f"{train.channels} channels"
                )
        return tuple(config.normalize.mean), tuple(config.normalize.std)
    return (spec.mean, spec.std) if spec.mean and spec.std else moments(train)
