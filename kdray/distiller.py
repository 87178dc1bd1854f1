"""The contract of a distillation loss: what it asks for, what it is handed, what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .options import Options

OUTPUTS = frozenset({"logits", "embedding", "features", "preactivations", "head"})


@dataclass(frozen=True)
class Requires:
    """Which outputs of each network a distiller reads: any of `OUTPUTS`. The engine taps just these."""

    student: frozenset[str] | set[str] = frozenset()
    teacher: frozenset[str] | set[str] = frozenset()

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
    shallow to deep · preactivations: the same before their last activation · head: (weight (num_classes, D), bias or
    None).
    """

    logits: Tensor | None = None
    embedding: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)
    preactivations: list[Tensor] = field(default_factory=list)
    head: tuple[Tensor, Tensor | None] | None = None


@dataclass(frozen=True)
class Shapes:
    """Shapes of one sample's outputs, without the batch axis, from one dry forward pass."""

    logits: tuple[int, ...] = ()
    embedding: tuple[int, ...] = ()
    features: tuple[tuple[int, ...], ...] = ()
    preactivations: tuple[tuple[int, ...], ...] = ()


@dataclass
class Batch:
    """This worker's part of the global batch.

    index (B,): positions of the samples in the training set, 0 ≤ index < num_samples · target (B,): their classes ·
    offset: place of the first row in the global batch · size: length of the global batch over all workers.
    """

    index: Tensor
    target: Tensor
    epoch: int = 0
    offset: int = 0
    size: int = 0


@dataclass
class Step:
    """The step a loss is evaluated in, and the only road to the other workers.

    `number` counts batches from 0. `generator` is a CPU generator in the same state on every worker, new at each step.
    """

    number: int
    epoch: int
    generator: torch.Generator
    rank: int = 0
    world_size: int = 1
    _gather: Callable[[Tensor, bool], Tensor] | None = None

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
    fill buffers.
    """

    student: Shapes
    teacher: Shapes | None
    num_classes: int
    num_samples: int
    labels: Tensor
    generator: torch.Generator
    teacher_head: tuple[Tensor, Tensor | None] | None = None


class Distiller(nn.Module):
    """Base class of a distillation loss.

    Parameters that the class registers train with the student; buffers (banks, queues, constants) are saved and
    resumed, and every worker keeps its own equal copy: write them from gathered values only.
    """

    Options: ClassVar[type[Options]] = Options
    requires: ClassVar[Requires] = Requires(student={"logits"})
    paper: ClassVar[str] = ""
    """Authors, title, venue, year."""

    def __init__(self, options: Options, setup: Setup):
        super().__init__()
        self.options = options

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch, step: Step) -> Tensor | dict[str, Tensor]:
        """The unweighted loss, or several named terms.

        Each is the mean over this worker's rows, so that the mean over workers is the loss of the global batch. A term
        that is computed on gathered rows, equal on every worker, obeys the same rule.
        """
        raise NotImplementedError

    def after_backward(self, batch: Batch, step: Step) -> None:
        """Called after the backward pass of each step: the place to write banks and queues that the graph has read."""
