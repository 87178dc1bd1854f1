"""A distiller plays its part in a made-up run, step by step: first its stages, then the main loop."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor, nn

from ..config.sections import parse_options
from ..data.views import share
from ..distiller import Batch, Distiller, Outputs, Step
from ..engine.batchnorm import synchronise
from ..engine.context import Context
from ..engine.labels import batch_for, setup_for
from ..engine.objective import Objective
from ..engine.phases import Trainable, phases
from .scenes import SAMPLES, Scene, cast, places

MAIN, STAGE = (8, 7, 8, 3), (8, 5)
"""Rows of the global batches of the main loop and of a stage: full ones, uneven ones, and a last smaller one."""


class Failed(AssertionError):
    """A check found what must not be."""


def demand(condition: object, otherwise: str) -> None:
    """An `assert` that `python -O` leaves in place."""
    if not condition:
        raise Failed(otherwise)


@dataclass
class Moment:
    """What one step gave to a worker of so many `rows`. inputs: gradients of the student's outputs by their place;
    parameters: gradients by name, averaged over the workers; state: the state dict, and buffers: all buffers, after the
    step."""

    phase: str
    rows: int
    terms: dict[str, Tensor]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    gathers: int = 0
    written: list[str] = field(default_factory=list)
    """Places of outputs that the distiller overwrote."""


class Rehearsal:
    """disturb: another state of the global random generators. round: applied to what the networks say, `teacher_only`
    or of both. mixed: makes each batch one of mixed pictures, as in a run with data.mix. label: its name in errors."""

    def __init__(
        self,
        cls: type[Distiller],
        options: dict,
        scene: Scene,
        dtype: torch.dtype = torch.float64,
        context: Context | None = None,
        *,
        main: tuple[int, ...] = MAIN,
        disturb: int = 0,
        round: Callable[[Tensor], Tensor] | None = None,
        teacher_only: bool = False,
        mixed: Callable[[Batch], Batch] | None = None,
        label: str = "",
    ):
        self.cls, self.scene, self.dtype, self.context = cls, scene, dtype, context or Context()
        self.disturb, self.round, self.teacher_only = disturb, round, teacher_only
        self.mixed, self.label = mixed, label or cls.__name__
        self.setup = scene.setup(cls.requires, dtype)
        if mixed:
            self.setup = setup_for(self.label, cls, self.setup)
        _seed_everything(0, disturb)
        torch.default_generator.manual_seed(0)  # heads may draw their first weights from it
        self.distiller = cls(parse_options(cls.Options, options), self.setup).to(dtype)
        if self.context.world_size > 1:
            synchronise(self.distiller, torch.device("cpu"))
        objective = Objective(nn.Identity(), {"": self.distiller}, None)
        all_phases = phases(objective.by_label())
        self.trainable = Trainable(objective, all_phases)
        self.program = [
            (phase, index, number + 1 == len(parts))
            for phase in all_phases
            for parts in [_parts(STAGE if phase.stage else main)]
            for number, index in enumerate(parts)
        ]
        self.first_of_main = next(i for i, (phase, _, _) in enumerate(self.program) if phase.stage is None)

    def run(self) -> list[Moment]:
        return [self.step(number) for number in range(len(self.program))]

    def step(self, number: int) -> Moment:
        phase, rows, is_last = self.program[number]
        context, distiller = self.context, self.distiller
        counts = [len(rows[share(len(rows), r, context.world_size)]) for r in range(context.world_size)]
        index = rows[share(len(rows), context.rank, context.world_size)]
        offset = sum(counts[: context.rank])
        parameters = self.trainable.begin(phase)
        self.trainable.set_modes(phase)
        student = self._outputs("student", index) if phase.trains_student else Outputs()
        teacher = self._outputs("teacher", index)
        for x in places(student).values():
            x.requires_grad_()
        versions = _versions(student, teacher)
        gathers = 0

        def gather(x, differentiable):
            nonlocal gathers
            gathers += 1
            return context.gather(x, counts, differentiable)

        batch = Batch(index=index, target=self.scene.labels[index], epoch=0, offset=offset, size=len(rows))
        if self.mixed:
            batch = batch_for(self.label, distiller, self.mixed(batch))
        generator = torch.Generator().manual_seed(1000 + number)
        step = Step(number, 0, generator, context.rank, context.world_size, gather)
        _seed_everything(number * 2 + context.rank, self.disturb)

        loss = phase.stage.loss if phase.stage else distiller
        if phase.stage is None:
            distiller.prepared = distiller.prepare(teacher, batch, step)
        terms = _terms(self.label, loss, student, teacher, batch, step)
        distiller.prepared = None
        loss = sum(terms.values())
        if isinstance(loss, Tensor) and loss.requires_grad:
            # Means over unequal parts: a part counts by its rows, as in the engine.
            (loss * (len(index) * context.world_size / len(rows))).backward()
        distiller.after_backward(batch, step)

        found = Moment(phase.stage.name if phase.stage else "", len(index), {k: v.detach() for k, v in terms.items()})
        found.gathers = gathers
        found.inputs = {k: torch.zeros_like(x) if x.grad is None else x.grad for k, x in places(student).items()}
        after = _versions(student, teacher)
        found.written = [place for place in versions if after.get(place) != versions[place]]
        trained = {id(p) for p in parameters}
        for name, parameter in distiller.named_parameters():
            if id(parameter) in trained:
                found.parameters[name] = self._average(parameter)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad / parameter.grad.norm().clamp(min=1)
                    parameter.grad = None
        if is_last and phase.stage and phase.stage.finish:
            phase.stage.finish()
        found.buffers = {k: v.detach().clone() for k, v in distiller.named_buffers()}
        found.state = {k: v.detach().clone() for k, v in distiller.state_dict().items()}
        return found

    def _outputs(self, side, index):
        outputs = self.scene.outputs(side, self.cls.requires, index, self.dtype)
        if self.round and (side == "teacher" or not self.teacher_only):
            outputs = cast(outputs, self.round)
        return outputs

    def _average(self, parameter):
        """As DistributedDataParallel does: a worker without a gradient counts as one with zeros."""
        if self.context.world_size > 1:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.context.sum(parameter.grad).div_(self.context.world_size)
        return None if parameter.grad is None else parameter.grad.clone()


def _parts(sizes: tuple[int, ...]) -> list[Tensor]:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(5))
    places = torch.arange(sum(sizes)) % 16  # samples come back, as they do in a second epoch
    return list(order[places].split(list(sizes)))


def _versions(student: Outputs, teacher: Outputs) -> dict[str, tuple[int, int]]:
    """Which tensor stands in each place, and how often it was written to."""
    sides = (("student", student), ("teacher", teacher))
    return {f"{side}.{place}": (id(x), x._version) for side, outputs in sides for place, x in places(outputs).items()}


def _terms(label, loss, student, teacher, batch, step) -> dict[str, Tensor]:
    result = loss(student, teacher, batch, step)
    terms = result if isinstance(result, dict) else {"": result}
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.dim() != 0:
            is_tensor = isinstance(term, Tensor)
            what = f"a tensor of shape {tuple(term.shape)}" if is_tensor else f"a {type(term).__name__}"
            which = f", as its term '{name}'" if name else ""
            raise Failed(f"{label} returned {what}{which}; a term is a scalar tensor")
    return terms


def _seed_everything(number: int, disturb: int) -> None:
    number += 7919 * disturb
    torch.default_generator.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)
