"""From a config to the parts of a run: data, networks, losses. Everything that can be wrong about them is found here,
before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..blame import blaming
from ..clock import Part, timed
from ..config.schema import Config, ModelConfig, PrunedConfig, StudentConfig
from ..config.sections import parse_options
from ..data.augment import Pipeline
from ..data.build import Data, load_data
from ..data.feed import Feed
from ..data.normalize import Normalize
from ..data.views import stream
from ..distiller import Distiller, Setup, Shapes
from ..errors import ConfigError
from ..models.build import Built, build_model
from ..models.checkpoint import load_weights
from ..models.prune import prune, widths
from ..models.rounding import begin_rounding
from ..models.taps import Tapped, probe
from ..registry import Registry
from ..teacher.live import LiveTeacher
from ..teacher.needs import Needs, needs
from ..teacher.placed import Asking, PlacedTeacher
from ..teacher.setup import Place, cached_teacher
from ..teacher.teachers import AVERAGE, Teachers
from .labels import setup_for
from .objective import Objective
from .phases import phases
from .precision import Precision, moved


@dataclass
class Parts:
    data: Data
    objective: Objective
    teachers: Teachers
    normalize: Normalize
    precision: Precision
    device: torch.device
    views: dict[str, Pipeline]
    """How the further pictures are made that the losses read."""
    needs: dict[str, Needs]
    """What the losses read of each teacher."""
    shapes: dict[str, Shapes]
    """What each teacher gives."""
    pruned: PrunedConfig | None
    """What the student is where channels were taken out of it, now or before the run."""

    @property
    def student(self) -> Tapped:
        return self.objective.student


@timed(Part.NETWORKS)
def build(
    config: Config,
    registry: Registry,
    data_root: Path,
    teacher_checkpoints: dict[str, str],
    device: torch.device,
    caches: dict[str, Place] | None = None,
    placed: dict[str, Asking] | None = None,
    data: Data | None = None,
) -> Parts:
    """teacher_checkpoints: file of weights by teacher; a teacher without stays untrained. caches: where a teacher's
    answers are stored. placed: the way to a teacher that answers elsewhere. data: where it has been loaded already.

    Raises ConfigError for data, networks, checkpoints and losses that do not fit together, MismatchError for a cache
    of something else.
    """
    data = data or load_data(config.data, config.seed, registry, data_root)
    precision = Precision(config.engine.precision, device)
    classes = {label: registry.get("distillers", loss.use or label).cls for label, loss in config.losses.items()}
    of_loss = _teachers_of_losses(config, classes)
    normalize = Normalize(data.mean, data.std)
    example = _example(data, device)

    def new_network(section: ModelConfig, side: str) -> Built:
        """An instance with its published weights, or initial ones that follow from `side`."""
        torch.manual_seed(stream(config.seed, side))
        return build_model(section, registry, data.num_classes, data.channels)

    def tapped(
        built: Built,
        wants: set[str],
        side: str,
        section: ModelConfig,
        norm: Normalize,
        precision: Precision,
        device: torch.device = device,
    ) -> tuple[Tapped, Shapes]:
        network = Tapped(built.model, built.layers, wants | {"logits"}, f"{side} {section.model}")
        # channels_last: 1.3 times (fp32) to 2.3 times (bf16) faster convolutions on CPUs, and what tensor cores want.
        network = network.to(device, precision.dtype).to(memory_format=torch.channels_last)
        return network, _shapes(network, norm, example.to(device), precision, side, section.model, data)

    built = new_network(config.student, "student")
    if config.student.checkpoint:
        _fill(built.model, config.student.checkpoint, "student", config.student.model, data)
    pruned = config.student.pruned
    if config.student.prune:
        pruned = _prune(config.student, built, normalize(example.cpu(), torch.float32), registry, data)
    wants = set().union(*(cls.requires.student for cls in classes.values()))
    student, student_shapes = tapped(built, wants, "student", config.student, normalize, precision)
    if config.student.int8:
        begin_rounding(student.model, normalize(example.to(device), precision.dtype), student.name)

    teachers, shapes = {}, {}
    for name, section in config.all_teachers.items():
        side = "teacher" if config.teacher else f"teacher {name}:"
        built = new_network(section, side)
        if name in teacher_checkpoints:
            _fill(built.model, teacher_checkpoints[name], side, section.model, data)
        own = section.normalize
        own = Normalize(own.mean, own.std) if own else Normalize(*built.normalize) if built.normalize else normalize
        wants = set().union(*(classes[label].requires.teacher for label, of in of_loss.items() if of == name))
        asking = (placed or {}).get(name)
        where = torch.device("cpu") if asking else device  # of one that answers elsewhere, only the head is used here
        arithmetic = Precision(section.precision or config.engine.precision, where)
        network, shapes[name] = tapped(built, wants, side, section, own, arithmetic, where)
        live = LiveTeacher(network, own, arithmetic, precision.dtype)
        teachers[name] = PlacedTeacher(asking, live, device) if asking else live
    if AVERAGE in of_loss.values():
        shapes[AVERAGE] = Shapes(logits=(data.num_classes,))

    def new_student() -> nn.Module:
        # The caller's random numbers give its weights.
        model = build_model(config.student, registry, data.num_classes, data.channels).model
        return model.to(device, precision.dtype).to(memory_format=torch.channels_last)

    distillers: dict[str, Distiller] = {}
    for label, cls in classes.items():
        setup = Setup(
            student=student_shapes,
            teacher=shapes.get(of_loss[label]),
            num_classes=data.num_classes,
            num_samples=len(data.train),
            labels=data.train.labels,
            generator=torch.Generator().manual_seed(stream(config.seed, "buffers", label)),
            teacher_head=teachers[of_loss[label]].head if of_loss[label] in teachers else None,
            batch_size=config.data.batch_size,
            new_student=new_student,
        )
        torch.manual_seed(stream(config.seed, "heads", label))
        if data.mix:
            setup = setup_for(label, cls, setup)
        distiller = _distiller(label, cls, config.losses[label].options, setup)
        distillers[label] = moved(distiller, device, precision.dtype)
    objective = Objective(student, distillers, precision)
    objective.deployed(), phases(objective.by_label())  # what is wrong with them is told before anything is trained
    of_teacher = {name: needs(name, of_loss, classes) for name in teachers}
    for name, place in (caches or {}).items():
        teachers[name] = cached_teacher(
            place, config.all_teachers[name], teachers[name], of_teacher[name], data, data.views, shapes[name]
        )
    asked = Teachers(teachers, of_loss)
    return Parts(data, objective, asked, normalize, precision, device, data.views, of_teacher, shapes, pruned)


def _teachers_of_losses(config: Config, classes: dict[str, type[Distiller]]) -> dict[str, str | None]:
    """Label of each loss to the name of its teacher. That they fit is seen when a config is loaded."""
    first = next(iter(config.all_teachers), None)
    return {
        label: (config.losses[label].teacher or first) if cls.requires.teacher else None
        for label, cls in classes.items()
    }


def _distiller(label: str, cls: type[Distiller], options: dict, setup: Setup) -> Distiller:
    with blaming(f"losses.{label}: {cls.__name__} could not be built"):
        return cls(parse_options(cls.Options, options), setup)


def new_optimizer(config: Config, registry: Registry, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    spec = registry.get("optimizers", config.optimizer.name)
    options = parse_options(spec.Options, {"lr": config.optimizer.lr, **config.optimizer.options})
    with blaming(f"optimizer {spec.name} could not be built"):
        return spec.build(parameters, options=options)


def _fill(model, checkpoint: str, side: str, name: str, data: Data) -> None:
    try:
        load_weights(model, checkpoint)
    except ConfigError as error:
        raise ConfigError(f"{side} {name} for {data.name} ({data.num_classes} classes): {error}") from error


def _prune(section: StudentConfig, built: Built, example: torch.Tensor, registry: Registry, data: Data) -> PrunedConfig:
    """Take channels out of the student, and say what is left of it."""
    name = f"student {section.model}"
    linear = [path for path, module in built.model.named_modules() if isinstance(module, nn.Linear)]
    head = built.layers.head or (linear[-1] if linear else "")
    if not head:
        raise ConfigError(f"student.prune: {name} has no nn.Linear, so its classifier, which stays whole, is not known")
    prune(built.model, section.prune, built.model.get_submodule(head), example, name)
    whole = section.model_copy(update={"weights": None, "checkpoint": None, "pruned": None})
    full = build_model(whole, registry, data.num_classes, data.channels).model
    left = widths(full, built.model, example, name)
    return PrunedConfig(share=section.prune, source=section.checkpoint or section.weights, widths=left)


def _example(data: Data, device: torch.device) -> torch.Tensor:
    """Two training pictures as the networks will see them."""
    feed = Feed(data.train, data.augment, 1, device)
    return next(iter(feed.batches([torch.arange(len(data.train))[:2]], view=0)))


def _shapes(
    network: Tapped, normalize: Normalize, example, precision: Precision, side: str, name: str, data: Data
) -> Shapes:
    shapes = probe(network, normalize(example, precision.dtype))
    if shapes.logits != (data.num_classes,):
        raise ConfigError(
            f"{side}: {name} has {shapes.logits[0] if len(shapes.logits) == 1 else shapes.logits} classes, "
            f"but the data set {data.name} has {data.num_classes}. Give a network made for these classes."
        )
    return shapes
