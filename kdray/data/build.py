"""From the `data:` section to splits: training, validation, test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..blame import blaming
from ..clock import Part, timed
from ..config.schema import DataConfig
from ..config.sections import parse_options
from ..errors import ConfigError, PluginError
from .augment import MOST_VARIANTS, Pipeline
from .mix import MIXES, Mix
from .source import Source, spread
from .views import stream, uniform

STATISTICS = 2_000  # pictures from which mean and deviation are computed where nobody gives them


@dataclass(frozen=True)
class Split:
    """Part of a source. ids (n,): the samples' positions in the source, by which their views are drawn. told: (N,)
    classes of the source's samples, where they are not its own."""

    source: Source
    ids: Tensor
    told: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        return self.labels_of(self.ids)

    def labels_of(self, ids: Tensor) -> Tensor:
        return (self.source.labels if self.told is None else self.told)[ids]

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
    views: dict[str, Pipeline] = field(default_factory=dict)
    """How further pictures of a training sample are made, by name."""

    def fingerprint(self) -> str:
        """Of training and test pictures, whatever part of them is used."""
        return hashlib.sha256((self.train.source.fingerprint() + self.test.source.fingerprint()).encode()).hexdigest()

    @property
    def mix(self) -> Mix | None:
        """How training pictures are mixed, where they are: the last part of `augment`."""
        return self.augment if isinstance(self.augment, Mix) else None

    @property
    def num_classes(self) -> int:
        return self.train.source.num_classes

    @property
    def channels(self) -> int:
        return self.train.source.channels


@timed(Part.DATA)
def load_data(config: DataConfig, seed: int, registry, data_root: Path) -> Data:
    """Raises ConfigError for missing and damaged files, labels and classes that do not fit, and impossible subsets."""
    spec = registry.get("datasets", config.name)
    augment, evaluate = pipeline(config.augment, registry, seed), evaluation_pipeline(config, registry)
    train, test = (load_source(config, split, registry, data_root) for split in ("train", "test"))
    _check_same_classes(train, test, _where(config, data_root))
    chosen, held_out = _divide(train, config, seed)
    split = Split(train, chosen, _noisy(train, config.label_noise, seed) if config.label_noise else None)
    if config.mix:
        way, mix_options = config.mix.way
        augment = MIXES[way](mix_options, augment, split, seed)
    if config.views == "all" and augment.variants is None:
        raise ConfigError(
            f"data.views: all pictures of a sample are asked for, and data.{'mix' if config.mix else 'augment'} makes "
            f"too many to number them (most are {MOST_VARIANTS:,}). Take crop and flip, or give a number of views"
        )
    views = {}
    for name, view in config.extra_views.items():
        own = pipeline(view.augment, registry, stream(seed, "view", name))
        own.after = augment if view.of == "base" else None
        views[name] = own
    for source in (train, test):
        if config.in_memory is not False:
            source.load_into_memory(config.threads, required=config.in_memory is True)
    if config.normalize:
        mean, std = tuple(config.normalize.mean), tuple(config.normalize.std)
    elif spec.mean is not None:
        mean, std = spec.mean, spec.std
    else:
        mean, std = _statistics(train, config.threads)
    return Data(
        name=config.name,
        train=split,
        validation=Split(train, held_out) if len(held_out) else None,
        test=Split(test, torch.arange(len(test))),
        augment=augment,
        evaluate=evaluate,
        mean=mean,
        std=std,
        views=views,
    )


def load_source(config: DataConfig, split: str, registry, data_root: Path) -> Source:
    """The pictures of the split "train" or "test", all of them. Raises ConfigError as `load_data` does."""
    spec = registry.get("datasets", config.name)
    options = parse_options(spec.Options, config.options)
    with blaming(f"data: the data set {config.name} could not be loaded"):
        source = spec.load(options, _path(config, data_root), split)
        name = "training" if split == "train" else split
        _check(source, f"{_where(config, data_root)}, {name} set")
    return source


def _path(config: DataConfig, data_root: Path) -> Path:
    return Path(config.path) if config.path else data_root / config.name


def _where(config: DataConfig, data_root: Path) -> str:
    return f"{config.name} at {_path(config, data_root)}"


def evaluation_pipeline(config: DataConfig, registry) -> Pipeline:
    """What is done to pictures at evaluation. Raises ConfigError where it is random."""
    found = pipeline(config.evaluate, registry, seed=0)
    for name, step in found.steps:
        if step.draws:
            raise ConfigError(
                f"data.evaluate: {name} is random, and pictures are evaluated as they are. It belongs in data.augment"
            )
    return found


def pipeline(entries: list, registry, seed: int) -> Pipeline:
    """The augmentations that a config lists."""
    steps = []
    for entry in entries:
        name, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        cls = registry.get("augmentations", name).cls
        with blaming(f"data: the augmentation {name} could not be built"):
            steps.append((name, cls(parse_options(cls.Options, options))))
    return Pipeline(steps, seed)


def _check(source: Source, where: str) -> None:
    """A plugin's data set may return anything."""
    if not isinstance(source, Source):
        raise PluginError(f"{where}: load() returned {source!r}; expected a kdray.Source")
    labels, images = source.labels, source.images
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
        raise PluginError(f"{where}: labels must be an int64 tensor (N,)")
    if images is not None and (
        images.dtype != torch.uint8 or images.shape[:2] != (len(labels), source.channels) or images.dim() != 4
    ):
        expected = f"torch.uint8 ({len(labels)}, {source.channels}, height, width)"
        raise PluginError(f"{where}: images are {images.dtype} {tuple(images.shape)}; expected {expected}")
    if not len(source):
        raise ConfigError(f"{where}: there are no pictures")
    for position in ((labels < 0) | (labels >= source.num_classes)).nonzero()[:1, 0].tolist():
        raise ConfigError(
            f"{where}: picture {position} has label {labels[position]}; the classes are 0 … {source.num_classes - 1}"
        )


def _check_same_classes(train: Source, test: Source, where: str) -> None:
    if train.class_names == test.class_names:
        return
    alone = [[name for name in a.class_names if name not in b.class_names] for a, b in ((train, test), (test, train))]
    sides = [f"{few(names)} only in the {split} set" for names, split in zip(alone, ("training", "test")) if names]
    raise ConfigError(
        f"{where}: training and test set have other classes: {' and '.join(sides) or 'their order differs'}"
    )


def _divide(train: Source, config: DataConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation samples, by the seed alone.

    Validation keeps the shares of the classes; `samples` are even over the classes.
    """
    n, held = len(train), round(config.validation * len(train))
    if config.validation and not 0 < held < n:
        raise ConfigError(
            f"data.validation: {config.validation} of {n} training samples is {held}; there must be some, and some left"
        )
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    labels = train.labels[shuffled]
    sizes = labels.bincount(minlength=train.num_classes)
    turn = torch.empty(n, dtype=torch.long)  # how many of its class come before a sample, in shuffled order
    turn[labels.argsort(stable=True)] = torch.arange(n) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    # Ordered by the share of their class that comes before them, any first samples have the classes' shares.
    order = ((turn + 0.5) / sizes[labels]).argsort(stable=True)
    held_out, rest = order[:held], order[held:]
    if config.leave_out:
        rest = rest[~torch.isin(labels[rest], _left_out(train, config))]
    if config.samples is not None:
        if config.samples > len(rest):
            kept = f" (of {n}, {held} are held out for validation)" if held else ""
            kept += f" without the classes {config.leave_out}" if config.leave_out else ""
            raise ConfigError(
                f"data.samples asks for {config.samples} training samples; {config.name} has {len(rest)}{kept}"
            )
        # Ordered by turn, any first samples are even over the classes: the k-th of each comes before any (k + 1)-th.
        rest = rest[turn[rest].argsort(stable=True)][: config.samples]
    if config.last_batch == "drop" and len(rest) < config.batch_size:
        raise ConfigError(
            f"data.last_batch is drop, and {len(rest)} training samples do not fill one batch of {config.batch_size}: "
            "nothing is left to train on"
        )
    return shuffled[rest].sort().values, shuffled[held_out].sort().values


def _left_out(train: Source, config: DataConfig) -> Tensor:
    """The classes that are not trained on. Raises ConfigError for one that there is not, and where none remains."""
    classes = torch.tensor(config.leave_out)
    for unknown in config.leave_out:
        if unknown >= train.num_classes:
            raise ConfigError(
                f"data.leave_out: {unknown} is no class of {config.name}; they are 0 … {train.num_classes - 1}"
            )
    if torch.isin(train.labels, classes).all():
        raise ConfigError(f"data.leave_out: {config.leave_out} are all classes of {config.name}: nothing remains")
    return classes


def _noisy(train: Source, share: float, seed: int) -> Tensor:
    """(N,) classes: each sample's own, or with the probability `share` any other one. A sample's depends on the seed
    and on itself."""
    if train.num_classes < 2:
        raise ConfigError("data.label_noise: there is one class, and no other that a sample could be told to have")
    wrong, which = uniform(stream(seed, "label noise"), 0, torch.arange(len(train)), 0, 2).unbind(1)
    other = (train.labels + 1 + (which * (train.num_classes - 1)).long()) % train.num_classes
    return torch.where(wrong < share, other, train.labels)


def _statistics(train: Source, threads: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and deviations over the pictures, or a spread of them, scaled to 0..1."""
    # Sums of whole numbers: the same on every machine.
    count, total, squares = 0, 0, 0
    for picture in train.pictures(spread(len(train), STATISTICS), threads):
        pixels = picture.flatten(1).long()
        count, total, squares = count + pixels.shape[1], total + pixels.sum(1), squares + (pixels**2).sum(1)
    mean = total.double() / count
    std = (squares.double() / count - mean**2).clamp(min=0).sqrt()
    if not std.all():
        raise ConfigError("a channel of the training pictures is the same everywhere: give data.normalize")
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
