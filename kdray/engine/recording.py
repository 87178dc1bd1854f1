"""A training step on one GPU, recorded once as a CUDA graph and replayed at every later step.

A step of a small network is some hundreds of kernels of a few microseconds each, and to launch them one by one takes
longer than to run them. A replay launches all of them at once. It repeats what was recorded: the same kernels on the
same memory. So what changes from step to step stands in tensors that are written before each replay: the batch, and the
numbers of `Dials`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config.schema import Config
from ..distiller import Distiller, Outputs
from ..errors import PluginError
from .context import Context

WARM_UP = 3
"""Steps before the recording: what libraries and losses do once, they do in these."""

Terms = dict[str, Tensor]


@dataclass
class Inputs:
    """What a step is computed from: pictures uint8 (b, C, H, W), further views of them, and the samples'
    positions (b,); of mixed pictures partner and share (b,), as in `Batch`; by teacher what is known of its outputs."""

    pictures: Tensor
    views: dict[str, Tensor]
    index: Tensor
    partner: Tensor | None = None
    share: Tensor | None = None
    known: dict[str, Outputs] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        """Those that are others at every step, always in the same order."""
        yield self.pictures
        yield from self.views.values()
        yield from (x for x in (self.index, self.partner, self.share) if x is not None)
        for outputs in self.known.values():
            rows: list[Tensor] = []
            outputs.map(rows.append)
            yield from rows


class Dials:
    """Numbers that move while a run trains, by name: plain ones, or where steps are recorded tensors () that a replay
    reads."""

    def __init__(self, device: torch.device, dtype: torch.dtype, on_device: bool):
        self.device, self.dtype, self.on_device = device, dtype, on_device
        self.values: dict[str, float] = {}
        self.tensors: dict[str, Tensor] = {}

    def set(self, name: str, value: float) -> None:
        if self.values.get(name) == value:
            return
        self.values[name] = value
        if not self.on_device:
            return
        if name in self.tensors:
            self.tensors[name].fill_(value)
        else:
            self.tensors[name] = torch.full((), value, device=self.device, dtype=self.dtype)

    def __getitem__(self, name: str) -> float | Tensor:
        return self.tensors[name] if self.on_device else self.values[name]


def obstacle(
    config: Config, context: Context, distillers: list[tuple[str, Distiller]], optimizer: torch.optim.Optimizer | None
) -> str:
    """Why the steps of the main loop cannot be recorded; "" where they can."""
    if context.device.type != "cuda":
        return "there is no GPU"
    if not config.engine.record:
        return "engine.record is false"
    if context.world_size > 1:
        return f"the run has {context.world_size} workers"
    if config.engine.nonfinite == "skip":
        return "engine.nonfinite: skip waits for the device at every step"
    if config.engine.accumulate > 1:
        return "engine.accumulate makes steps of several kinds"
    for label, distiller in distillers:
        if not distiller.recordable:
            return f"loss '{label}' ({type(distiller).__name__}) does not say `recordable`"
        if config.losses[label].schedule:
            return f"losses.{label}.schedule moves options of the loss"
    if optimizer is None or not all(_follows_dials(optimizer, group) for group in optimizer.param_groups):
        return f"the optimizer {config.optimizer.name} is neither fused SGD nor `capturable`"
    return ""


def _follows_dials(optimizer: torch.optim.Optimizer, group: dict) -> bool:
    return bool(group.get("capturable") or (isinstance(optimizer, torch.optim.SGD) and group["fused"]))


class Recorder:
    """Runs `work` on the inputs of each step: as it is, until it has seen `WARM_UP` full batches, then from a
    recording. Batches of other shapes than the recorded one are always computed as they are.

    work(inputs): the whole step; returns scalars by name. generator: what it draws from, beside the device's
    own; both are seeded before each step. losses: named where the recording fails."""

    def __init__(self, work: Callable[[Inputs], Terms], generator: torch.Generator, size: int, losses: str):
        self.work, self.generator, self.size, self.losses = work, generator, size, losses
        self.seen = 0
        self.inputs: Inputs | None = None

    def __call__(self, inputs: Inputs) -> Terms:
        if len(inputs.index) != self.size or (self.inputs and inputs.pictures.shape != self.inputs.pictures.shape):
            return self.work(inputs)
        if self.seen < WARM_UP:
            self.seen += 1
            return self.work(inputs)
        if self.inputs is None:
            self.inputs = inputs
            self.static = [x.clone(memory_format=torch.preserve_format) for x in inputs.tensors()]
            _replace(inputs, iter(self.static))
            self.replay, self.terms = self._record()
        else:
            torch._foreach_copy_(self.static, list(inputs.tensors()), non_blocking=True)
        self.replay()
        return self.terms

    def _record(self) -> tuple[Callable[[], None], Terms]:
        try:
            return capture(lambda: self.work(self.inputs), self.generator)
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            raise PluginError(
                f"the step could not be recorded as a CUDA graph, though all of {self.losses} say `recordable`: one of "
                f"them waits for the device or copies from the host ({str(error).splitlines()[0]}). "
                "Set `engine.record: false`"
            ) from error


def _replace(inputs: Inputs, static: Iterator[Tensor]) -> None:
    """Put other tensors in the places of `inputs.tensors()`."""
    inputs.pictures = next(static)
    inputs.views = {name: next(static) for name in inputs.views}
    for name in ("index", "partner", "share"):
        if getattr(inputs, name) is not None:
            setattr(inputs, name, next(static))
    inputs.known = {name: outputs.map(lambda _: next(static)) for name, outputs in inputs.known.items()}


def capture(work: Callable[[], Terms], generator: torch.Generator) -> tuple[Callable[[], None], Terms]:
    """Record `work` on the current stream. Returns what repeats it, and where its results then stand."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    # Other threads may allocate pinned memory meanwhile.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        terms = work()
    return graph.replay, terms
