"""Draws of samples by class, equal on every worker."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distiller import Batch, Step
from ..errors import ConfigError


def need_classes(labels: Tensor) -> None:
    if (labels == labels[0]).all():
        raise ConfigError("negatives are samples of other classes, but the training set has only one class")


class ByClass(nn.Module):
    """Training samples sorted by class: `order` lists them, class c stands at `start[c]` … `start[c] + size[c] − 1`."""

    def __init__(self, labels: Tensor):
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("size", labels.bincount(), persistent=False)
        self.register_buffer("start", self.size.cumsum(0) - self.size, persistent=False)
        # Sizes as plain numbers, so that no step has to ask the device.
        self.total, self.largest = len(labels), int(self.size.max())
        self.narrow = torch.int16 if len(self.size) <= 2**15 else torch.int32  # holds every label

    def _uniform(self, batch: Batch, step: Step, columns: int) -> Tensor:
        """(b, columns) in [0, 1): drawn for the whole global batch, so that a row does not depend on the worker it
        sits on."""
        every = torch.rand(batch.size, columns, generator=step.generator, dtype=torch.float64)
        return every[batch.offset : batch.offset + len(batch.index)].to(batch.index.device)


class SameClass(ByClass):
    """A uniform sample of the anchor's class, itself included: (b,)."""

    def forward(self, batch: Batch, step: Step) -> Tensor:
        size, start = self.size[batch.target], self.start[batch.target]
        return self.order[start + (self._uniform(batch, step, 1)[:, 0] * size).long()]


class OtherClasses(ByClass):
    """K samples of other classes for each row: (b, K)."""

    def __init__(self, count: int, labels: Tensor):
        super().__init__(labels)
        self.count = count
        need_classes(labels)

    def forward(self, batch: Batch, step: Step) -> Tensor:
        return self._window(batch, step) if self.count <= self.total - self.largest else self._independent(batch, step)

    def _window(self, batch: Batch, step: Step) -> Tensor:
        """Without replacement: one permutation of all samples a step, of which each row takes a window at its own
        place and leaves its class out.

        A row's draw is a uniform K-subset of the other classes; rows of one step share the permutation, which costs a
        hundredth of a permutation a row.
        """
        # A window and what follows it hold K of other classes, whatever stands in them.
        length = min(self.total, self.count + self.largest)
        order = torch.randperm(self.total, generator=step.generator).to(batch.index.device)
        start = (self._uniform(batch, step, 1)[:, 0] * self.total).long()
        twice = torch.cat([order, order[:length]])
        window = twice.unfold(0, length, 1)[start]  # (b, length)
        labels = self.labels[twice].to(self.narrow)
        own = labels.unfold(0, length, 1)[start] == batch.target[:, None].to(self.narrow)
        drawn, after = window[:, : self.count], window[:, self.count :]
        # The i-th of the own class in a row gives its place to the i-th of another class that follows.
        row, place = own[:, : self.count].nonzero(as_tuple=True)
        found = row.bincount(minlength=len(window))
        nth = torch.arange(len(row), device=row.device) - (found.cumsum(0) - found)[row]
        others_first = own[:, self.count :].to(torch.uint8).sort(dim=1, stable=True).indices
        drawn[row, place] = after[row, others_first[row, nth]]
        return drawn

    def _independent(self, batch: Batch, step: Step) -> Tensor:
        size, start = self.size[batch.target, None], self.start[batch.target, None]
        place = (self._uniform(batch, step, self.count) * (self.total - size)).long()
        return self.order[place + size * (place >= start)]  # skip over the anchor's class
