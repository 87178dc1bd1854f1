"""A teacher that answers somewhere else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..distiller import Outputs
from .live import LiveTeacher


class Asking(Protocol):
    """The way to a teacher elsewhere. What a step shows follows from the seed, so numbers are all that is sent."""

    ahead: int
    """Batches that are asked for before their answers are needed."""

    def ask(self, ids: Tensor, view: int) -> Any:
        """A promise of what it says of the samples `ids` (b,) as they look in `view`."""

    def answer(self, promise: Any) -> Outputs:
        """What was promised, on the CPU; waits for it."""

    def accuracy(self) -> dict[str, float]:
        """On the test set."""


class PlacedTeacher:
    def __init__(self, asking: Asking, teacher: LiveTeacher, device: torch.device):
        """teacher: the same network, of which the head and the size are read here. device: where answers go."""
        self.asking, self.device = asking, device
        self.count, self.dtype = teacher.count, teacher.dtype
        self.head = teacher.head and tuple(x if x is None else x.to(device) for x in teacher.head)

    @property
    def accuracy(self) -> dict[str, float]:
        return self.asking.accuracy()

    def batches(self, ids: list[Tensor], view: int) -> Iterator[Outputs]:
        """What it says of the samples `ids` (b,) a batch, as they look in `view`."""
        promised: deque = deque()
        for chosen in ids:
            promised.append(self.asking.ask(chosen, view))
            if len(promised) > self.asking.ahead:
                yield self._answer(promised.popleft())
        while promised:
            yield self._answer(promised.popleft())

    def _answer(self, promise: Any) -> Outputs:
        outputs = self.asking.answer(promise).map(lambda x: x.to(self.device, non_blocking=True))
        return replace(outputs, head=self.head)
