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
        generator = step.device_generator
        every = torch.rand(batch.size, columns, generator=generator, dtype=torch.float64, device=generator.device)
        return every[batch.offset : batch.offset + len(batch.index)]


class SameClass(ByClass):
    """A uniform sample of the anchor's class, itself included: (b,)."""

    def forward(self, batch: Batch, step: Step) -> Tensor:
        size, start = self.size[batch.target], self.start[batch.target]
        return self.order[start + (self._uniform(batch, step, 1)[:, 0] * size).long()]


class ForAll(nn.Module):
    """K samples of any class for the whole batch: (K,)."""

    def __init__(self, count: int, samples: int):
        super().__init__()
        if count > samples:
            raise ConfigError(f"`negatives: {{count: {count}}}` is more than the {samples} training samples")
        self.count, self.samples = count, samples

    def forward(self, batch: Batch, step: Step) -> Tensor:
        return _permutation(self.samples, step)[: self.count]


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
        order = _permutation(self.total, step)
        start = (self._uniform(batch, step, 1)[:, 0] * self.total).long()
        twice = torch.cat([order, order[:length]])
        window = twice.unfold(0, length, 1)[start]  # (b, length)
        labels = self.labels[twice].to(self.narrow)
        own = labels.unfold(0, length, 1)[start] == batch.target[:, None].to(self.narrow)
        first = _first_replaced if window.device.type == "cpu" else _first_in_order
        return first(window, own, self.count)

    def _independent(self, batch: Batch, step: Step) -> Tensor:
        size, start = self.size[batch.target, None], self.start[batch.target, None]
        place = (self._uniform(batch, step, self.count) * (self.total - size)).long()
        return self.order[place + size * (place >= start)]  # skip over the anchor's class


def _permutation(samples: int, step: Step) -> Tensor:
    generator = step.device_generator
    return torch.randperm(samples, generator=generator, device=generator.device)


def _first_replaced(window: Tensor, own: Tensor, count: int) -> Tensor:
    """The first `count` of each row (b, L) that are not `own`: (b, count). Fast where few are own, but it has to wait
    for a device."""
    drawn, after = window[:, :count], window[:, count:]
    # The i-th of the own class in a row gives its place to the i-th of another class that follows.
    row, place = own[:, :count].nonzero(as_tuple=True)
    found = row.bincount(minlength=len(window))
    nth = torch.arange(len(row), device=row.device) - (found.cumsum(0) - found)[row]
    others_first = own[:, count:].to(torch.uint8).sort(dim=1, stable=True).indices
    drawn[row, place] = after[row, others_first[row, nth]]
    return drawn


def _first_in_order(window: Tensor, own: Tensor, count: int) -> Tensor:
    """The same ones, in their order, by work that does not depend on what there is."""
    place = (~own).cumsum(dim=1) - 1
    place = place.masked_fill_(own, count).clamp_(max=count)  # the last column takes all that are not wanted
    return window.new_empty(len(window), count + 1).scatter_(1, place, window)[:, :count]
