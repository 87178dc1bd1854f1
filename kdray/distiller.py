"""The contract of a distillation loss: what it asks for, what it is handed, what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .options import Options

OUTPUTS = frozenset({"logits", "embedding", "features", "preactivations", "last_map", "head", "pictures"})


@dataclass(frozen=True)
class Requires:
    """Which outputs of each network a distiller reads: any of `OUTPUTS`. The engine taps just these.

    views: further pictures of each sample, by the names of `data.extra_views`. Both networks see them too, and their
    outputs stand in `Outputs.views`. student_views: whether the student does; else only what the teacher says is there.
    """

    student: frozenset[str] | set[str] = frozenset()
    teacher: frozenset[str] | set[str] = frozenset()
    views: tuple[str, ...] = ()
    student_views: bool = True

    def __post_init__(self):
        for side in ("student", "teacher"):
            asked = frozenset(getattr(self, side))
            if asked - OUTPUTS:
                raise ValueError(f"Requires({side}=…) asks for {sorted(asked - OUTPUTS)}; known: {sorted(OUTPUTS)}")
            object.__setattr__(self, side, asked)


@dataclass
class Outputs:
    """What a network says of a batch of B pictures. Only what was required is filled in; the rest is None.

    logits (B, num_classes) · embedding (B, D), the input of the classifier · features: maps (B, C, H, W) of the stages,
    shallow to deep · preactivations: the same before their last activation · last_map (B, D, H, W): what is pooled to
    the embedding (its mean over H and W is the embedding) · head: (weight (num_classes, D), bias or None) · pictures
    (B, C, H, W): normalised, as the network got them · views: what it says of the further pictures of the samples.
    """

    logits: Tensor | None = None
    embedding: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)
    preactivations: list[Tensor] = field(default_factory=list)
    last_map: Tensor | None = None
    head: tuple[Tensor, Tensor | None] | None = None
    pictures: Tensor | None = None
    views: dict[str, Outputs] = field(default_factory=dict)

    def first(self, count: int) -> Outputs:
        """What it says of the first `count` pictures."""
        return self.map(lambda x: x[:count])

    def map(self, change: Callable[[Any], Any]) -> Outputs:
        """The same with every tensor of B rows replaced by `change` of it; the head stays."""
        rows = {
            kind: change(value)
            for kind in ("logits", "embedding", "last_map", "pictures")
            if (value := getattr(self, kind)) is not None
        }
        maps = {kind: [change(x) for x in getattr(self, kind)] for kind in ("features", "preactivations")}
        views = {name: outputs.map(change) for name, outputs in self.views.items()}
        return replace(self, **rows, **maps, views=views)


@dataclass(frozen=True)
class Shapes:
    """Shapes of one sample's outputs, without the batch axis, from one dry forward pass."""

    logits: tuple[int, ...] = ()
    embedding: tuple[int, ...] = ()
    features: tuple[tuple[int, ...], ...] = ()
    preactivations: tuple[tuple[int, ...], ...] = ()
    last_map: tuple[int, ...] = ()
    pictures: tuple[int, ...] = ()


@dataclass
class Batch:
    """This worker's part of the global batch.

    index (B,): positions of the samples in the training set, 0 ≤ index < num_samples · target (B,): their classes ·
    offset: place of the first row in the global batch · size: length of the global batch over all workers.

    With data.mix, each picture is made of two: share (B,) is the part λ of it that is the sample's own, partner (B,)
    the class of the rest. Reading `target` is then an error for a loss that does not say `mixes`.
    """

    index: Tensor
    target: Tensor
    epoch: int = 0
    offset: int = 0
    size: int = 0
    partner: Tensor | None = None
    share: Tensor | None = None


@dataclass
class Step:
    """The step a loss is evaluated in, and the only road to the other workers.

    `number` counts batches from 0. `generator` is a CPU generator in the same state on every worker, new at each step;
    `device_generator` the same on the device of the batch, for draws that a recorded step repeats with new numbers.
    """

    number: int
    epoch: int
    generator: torch.Generator
    rank: int = 0
    world_size: int = 1
    _gather: Callable[[Tensor, bool], Tensor] | None = None
    device_generator: torch.Generator | None = None

    def __post_init__(self):
        self.device_generator = self.device_generator or self.generator

    def gather(self, x: Tensor, differentiable: bool = False) -> Tensor:
        """Rows of all workers in global order, (B, …) to (size, …).

        With `differentiable`, gradients flow back to the worker each row came from. Every worker must call it.
        """
        if self._gather is None:
            return x if differentiable else x.detach()
        return self._gather(x, differentiable)


@dataclass
class Setup:
    """What a distiller may know when it is built.

    labels (num_samples,): class of every training sample. teacher_head: the teacher's classifier, frozen, where it has
    one. `teacher` is None when the run has no teacher. `generator` gives the same numbers on every worker: use it to
    fill buffers. batch_size: of the global batch; an epoch's last one may be smaller. `new_student()` makes another
    network like the student, with weights of its own, that maps normalised pictures to logits.
    """

    student: Shapes
    teacher: Shapes | None
    num_classes: int
    num_samples: int
    labels: Tensor
    generator: torch.Generator
    teacher_head: tuple[Tensor, Tensor | None] | None = None
    batch_size: int = 0
    new_student: Callable[[], nn.Module] | None = None


@dataclass(frozen=True)
class Stage:
    """A part of the training that comes before the main loop: `epochs` passes over the training set.

    loss(student, teacher, batch, step): as `Distiller.forward`; `{}` where the stage only looks, and writes buffers
    (from gathered values). student: whether the student trains in it; if not, it is not run, and its outputs are empty.
    modules: those of the distiller that train in this stage and in no other, nor in the main loop. lr: constant
    learning rate; None: the run's. finish(): called once after the last step.

    The optimizer is the run's, begun anew. The student's layers that the loss does not reach stay as they are.
    """

    name: str
    epochs: int
    loss: Callable[..., Tensor | dict[str, Tensor]]
    student: bool = False
    modules: tuple[nn.Module, ...] = ()
    lr: float | None = None
    finish: Callable[[], None] | None = None

    def __post_init__(self):
        for part in ("loss", "finish"):
            if not callable(getattr(self, part)) and not (part == "finish" and self.finish is None):
                raise ValueError(f"Stage('{self.name}'): {part} is {getattr(self, part)!r}; expected a method")


@dataclass(frozen=True)
class Published:
    """Test accuracy (%) that the literature gives on CIFAR-100, for ResNet-32x4 to ResNet-8x4 and WRN-40-2 to WRN-16-2,
    and where it stands."""

    resnet8x4: float | None = None
    wrn_16_2: float | None = None
    source: str = ""


class Distiller(nn.Module):
    """Base class of a distillation loss.

    Parameters that the class registers train with the student; buffers (banks, queues, constants) are saved and
    resumed, and every worker keeps its own equal copy: write them from gathered values only.
    """

    Options: ClassVar[type[Options]] = Options
    requires: ClassVar[Requires] = Requires(student={"logits"})
    paper: ClassVar[str] = ""
    """Authors, title, venue, year."""
    published: ClassVar[Published | None] = None
    scope: ClassVar[Literal["sample", "batch"]] = "sample"
    """`batch`: the loss relates samples to each other or keeps statistics of them, so it gathers over the workers."""
    mixes: ClassVar[bool] = False
    """Whether it understands pictures of two classes, `batch.target` and `batch.partner` by `batch.share`. A loss that
    reads no classes need not say so."""
    recordable: ClassVar[bool] = False
    """Whether its part of a step may be recorded on a GPU and replayed at all later steps. Then `prepare`,
    `forward` and `after_backward` do the same work on the device each time: they wait for nothing from it (`.item()`,
    `nonzero`, masks as indices), copy nothing from the host, draw from `step.device_generator`, and read neither
    `step.number`, `step.epoch` nor `batch.epoch`. What they do in the first steps only is done before the recording."""
    scheduled: ClassVar[frozenset[str]] = frozenset()
    """Numeric options that `schedule:` of a config may move while training: `forward` reads them from `self.options`
    each time."""

    prepared = None
    """What `prepare` returned for the batch that `forward` is called with; None where nobody called it."""

    def __init__(self, options: Options, setup: Setup):
        super().__init__()
        self.options = options

    def prepare(self, teacher: Outputs, batch: Batch, step: Step):
        """What `forward` needs and the student has no part in, heads of the loss and draws included.

        In the main loop it is called before the student sees the batch, and `forward` finds what it returned in
        `self.prepared`. On one GPU it runs while the student computes.
        """
        return None

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch, step: Step) -> Tensor | dict[str, Tensor]:
        """The unweighted loss, or several named terms.

        Each is the mean over this worker's rows, so that the mean over workers is the loss of the global batch. A term
        that is computed on gathered rows, equal on every worker, obeys the same rule. `{}`: nothing to add. The names
        are the same at every step.
        """
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """What trains before the main loop, in order."""
        return []

    def deployed(self, student: nn.Module) -> nn.Module | None:
        """The network that is evaluated and exported in the student's stead, pictures to logits; None: the student.

        For methods that give the student another head. `student` maps normalised pictures to `Outputs`.
        """
        return None

    def after_backward(self, batch: Batch, step: Step) -> None:
        """Called after the backward pass of each step, those of the distiller's own stages too: the place to write
        banks and queues that the graph has read."""
