"""From the `data:` section to splits: training, validation, test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config.schema import DataConfig
from ..config.sections import parse_options
from ..errors import ConfigError
from .augment import Pipeline
from .source import Source

STATISTICS = 10_000  # pictures from which mean and deviation are computed where nobody gives them


@dataclass(frozen=True)
class Split:
    """Part of a source. ids (n,): the samples' positions in the source, by which their views are drawn."""

    source: Source
    ids: Tensor

    @property
    def labels(self) -> Tensor:
        return self.source.labels[self.ids]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Data:
    name: str
    train: Split
    validation: Split | None
    test: Split
    augment: Pipeline
    """What is done to training pictures."""
    evaluate: Pipeline
    """What is done to pictures at evaluation."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return self.train.source.num_classes

    @property
    def channels(self) -> int:
        return self.train.source.channels


def load_data(config: DataConfig, seed: int, registry, data_root: Path) -> Data:
    """Raises ConfigError for files that are missing or damaged, and for more samples than there are."""
    spec = registry.get("datasets", config.name)
    options = parse_options(spec.Options, config.options)
    path = Path(config.path) if config.path else data_root / config.name
    train, test = (spec.load(options, path, split) for split in ("train", "test"))
    if train.class_names != test.class_names:
        raise ConfigError(
            f"{config.name} at {path}: training and test set have other classes: {_few(train.class_names)} against {_few(test.class_names)}"
        )
    for source in (train, test):
        if config.in_memory is not False:
            source.load_into_memory(config.threads, required=config.in_memory is True)
    chosen, held_out = _divide(train, config, seed)
    normalize = config.normalize
    if normalize:
        mean, std = tuple(normalize.mean), tuple(normalize.std)
    elif spec.mean is not None:
        mean, std = spec.mean, spec.std
    else:
        mean, std = _statistics(train)
    return Data(
        name=config.name,
        train=Split(train, chosen),
        validation=Split(train, held_out) if len(held_out) else None,
        test=Split(test, torch.arange(len(test))),
        augment=_pipeline(config.augment, registry, seed),
        evaluate=_pipeline(config.evaluate, registry, seed),
        mean=mean,
        std=std,
    )


def _pipeline(entries: list, registry, seed: int) -> Pipeline:
    steps = []
    for entry in entries:
        name, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        cls = registry.get("augmentations", name).cls
        steps.append((name, cls(parse_options(cls.Options, options))))
    return Pipeline(steps, seed)


def _divide(train: Source, config: DataConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation samples, each drawn evenly over the classes, by the seed alone."""
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    # Round-robin over the classes: the k-th sample of every class before any (k + 1)-th. Any prefix is even over the classes.
    labels = train.labels[shuffled]
    seen = torch.zeros(len(train), dtype=torch.long)
    for c in range(train.num_classes):
        mine = labels == c
        seen[mine] = torch.arange(int(mine.sum()))
    held = round(config.validation * len(train))
    size = labels.bincount(minlength=train.num_classes)[labels]
    # Validation keeps the classes' shares: the first `validation` of each class, in the order of that share.
    proportional = shuffled[((seen + 0.5) / size).argsort(stable=True)]
    held_out, rest = proportional[:held], proportional[held:]
    if config.samples is not None:
        if config.samples > len(rest):
            kept = f" (of {len(train)}, {held} are held out for validation)" if held else ""
            raise ConfigError(f"data.samples asks for {config.samples} training samples; {config.name} has {len(rest)}{kept}")
        order = torch.full((len(train),), -1, dtype=torch.long)
        order[shuffled] = seen
        rest = rest[order[rest].argsort(stable=True)][: config.samples]
    return rest.sort().values, held_out.sort().values


def _statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and deviations over the pictures, or a spread of them, scaled to 0..1."""
    positions = torch.linspace(0, len(source) - 1, min(len(source), STATISTICS)).long().unique().tolist()
    count, total, squares = 0, torch.zeros(source.channels).double(), torch.zeros(source.channels).double()
    for position in positions:
        picture = source.read(position).double().flatten(1) / 255
        count += picture.shape[1]
        total += picture.sum(1)
        squares += (picture**2).sum(1)
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1e-12).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
