"""Where the negatives of a contrastive loss come from, with one meaning at any number of workers.

Student and teacher each give unit vectors g_s, g_t (b, d) for this worker's rows. A pool turns them into inner
products: of every anchor with its positive and with its negatives, samples of other classes, for both directions.
Nothing is divided by a temperature here.

bank    a row for every training sample and side; positives and negatives are read from it, K drawn a sample.
queue   the last K embeddings of each side; the positive is the other network's fresh embedding.
batch   the other rows of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .distiller import Batch, Setup, Step
from .errors import ConfigError
from .options import Options


class BankOptions(Options):
    kind: Literal["bank"] = Field("bank", description="A memory of every training sample.")
    count: int = Field(
        16384,
        gt=0,
        description="K: negatives drawn for each sample; with replacement where other classes have fewer samples.",
    )
    momentum: float = Field(0.5, ge=0, lt=1, description="Share of the old vector when a sample's row is written.")
    mode: Literal["exact", "relax"] = Field(
        "exact", description="exact: the positive is the sample itself. relax: any sample of its class."
    )


class QueueOptions(Options):
    kind: Literal["queue"] = Field("queue", description="The last embeddings, first in, first out.")
    count: int = Field(16384, gt=0, description="K: length of the queue.")


class BatchOptions(Options):
    kind: Literal["batch"] = Field("batch", description="The global batch.")


@dataclass
class Scores:
    """Inner products of b anchors: positive (b,), negative (b, K). valid (b, K) marks the negatives that count; None:
    all of them."""

    positive: Tensor
    negative: Tensor
    valid: Tensor | None = None


def negative_pool(options: BankOptions | QueueOptions | BatchOptions, dim: int, setup: Setup) -> nn.Module:
    """The pool for `options`: call it with (g_s, g_t, batch, step) for the scores of both directions, `update(batch,
    step)` after the backward pass."""
    return {"bank": Bank, "queue": Queue, "batch": InBatch}[options.kind](options, dim, setup)


def _random_rows(rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """Uniform in ±1/√(dim/3), as the published banks begin: vectors of length about 1."""
    bound = (dim / 3) ** -0.5
    return torch.rand(rows, dim, generator=generator) * 2 * bound - bound


class Bank(nn.Module):
    def __init__(self, options: BankOptions, dim: int, setup: Setup):
        super().__init__()
        self.options = options
        self.draw = OtherClasses(options.count, setup.labels)
        self.same = SameClass(setup.labels) if options.mode == "relax" else None
        self.register_buffer("memory_s", _random_rows(setup.num_samples, dim, setup.generator))
        self.register_buffer("memory_t", _random_rows(setup.num_samples, dim, setup.generator))

    def forward(self, g_s: Tensor, g_t: Tensor, batch: Batch, step: Step) -> tuple[Scores, Scores]:
        # One product with the whole bank, then the drawn scores: copying the drawn rows would move K times more memory.
        drawn = self.draw(batch, step)
        own = batch.index if self.same is None else self.same(batch, step)

        def scores(anchor: Tensor, memory: Tensor) -> Scores:
            all_scores = anchor @ memory.to(anchor.dtype).T  # (b, N)
            return Scores(all_scores.gather(1, own[:, None])[:, 0], all_scores.gather(1, drawn))

        self.fresh = (g_s.detach(), g_t.detach())
        return scores(g_s, self.memory_t), scores(g_t, self.memory_s)

    @torch.no_grad()
    def update(self, batch: Batch, step: Step) -> None:
        index = step.gather(batch.index)
        # A sample that stands twice in a batch keeps its last row, in global order, on every worker.
        last = ~(index[None, :] == index[:, None]).triu(1).any(dim=1)
        m = self.options.momentum
        for memory, fresh in zip((self.memory_s, self.memory_t), self.fresh):
            fresh = step.gather(fresh)[last].to(memory.dtype)
            memory[index[last]] = F.normalize(m * memory[index[last]] + (1 - m) * fresh, dim=1)


class Queue(nn.Module):
    """Scored before it is written, so that no sample is its own negative; rows of the anchor's class do not count."""

    def __init__(self, options: QueueOptions, dim: int, setup: Setup):
        super().__init__()
        for name in ("queue_s", "queue_t"):
            self.register_buffer(name, F.normalize(_random_rows(options.count, dim, setup.generator), dim=1))
        self.register_buffer("classes", torch.full((options.count,), -1))  # −1: still random, of no class
        self.register_buffer("head", torch.zeros((), dtype=torch.long))

    def forward(self, g_s: Tensor, g_t: Tensor, batch: Batch, step: Step) -> tuple[Scores, Scores]:
        positive = (g_s * g_t).sum(dim=1)
        valid = self.classes[None, :] != batch.target[:, None]
        self.fresh = (g_s.detach(), g_t.detach())
        return (
            Scores(positive, g_s @ self.queue_t.to(g_s.dtype).T, valid),
            Scores(positive, g_t @ self.queue_s.to(g_t.dtype).T, valid),
        )

    @torch.no_grad()
    def update(self, batch: Batch, step: Step) -> None:
        size = len(self.classes)
        target = step.gather(batch.target)[-size:]  # of a batch longer than the queue, the last rows stay
        places = (self.head + torch.arange(len(target), device=target.device)) % size
        self.classes[places] = target
        for queue, fresh in zip((self.queue_s, self.queue_t), self.fresh):
            queue[places] = step.gather(fresh)[-size:].to(queue.dtype)
        self.head.copy_((self.head + len(target)) % size)


class InBatch(nn.Module):
    """Gradients flow to anchors and keys alike, also to those of other workers."""

    def __init__(self, options: BatchOptions, dim: int, setup: Setup):
        super().__init__()

    def forward(self, g_s: Tensor, g_t: Tensor, batch: Batch, step: Step) -> tuple[Scores, Scores]:
        positive = (g_s * g_t).sum(dim=1)
        valid = step.gather(batch.target)[None, :] != batch.target[:, None]
        keys_s, keys_t = step.gather(g_s, differentiable=True), step.gather(g_t, differentiable=True)
        return Scores(positive, g_s @ keys_t.T, valid), Scores(positive, g_t @ keys_s.T, valid)

    def update(self, batch: Batch, step: Step) -> None:
        pass


class _ByClass(nn.Module):
    """Training samples sorted by class: `order` lists them, class c stands at `start[c]` … `start[c] + size[c] − 1`."""

    def __init__(self, labels: Tensor):
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("size", labels.bincount(), persistent=False)
        self.register_buffer("start", self.size.cumsum(0) - self.size, persistent=False)
        # Sizes as plain numbers, so that no step has to ask the device.
        self.total, self.largest = len(labels), int(self.size.max())

    def _uniform(self, batch: Batch, step: Step, columns: int) -> Tensor:
        """(b, columns) in [0, 1): drawn for the whole global batch, so that a row does not depend on the worker it
        sits on."""
        every = torch.rand(batch.size, columns, generator=step.generator, dtype=torch.float64)
        return every[batch.offset : batch.offset + len(batch.index)].to(batch.index.device)


class SameClass(_ByClass):
    """A uniform sample of the anchor's class, itself included: (b,)."""

    def forward(self, batch: Batch, step: Step) -> Tensor:
        size, start = self.size[batch.target], self.start[batch.target]
        return self.order[start + (self._uniform(batch, step, 1)[:, 0] * size).long()]


class OtherClasses(_ByClass):
    """K samples of other classes for each row: (b, K)."""

    def __init__(self, count: int, labels: Tensor):
        super().__init__(labels)
        self.count = count
        if self.largest == self.total:
            raise ConfigError("negatives are samples of other classes, but the training set has only one class")

    def forward(self, batch: Batch, step: Step) -> Tensor:
        return self._window(batch, step) if self.count <= self.total - self.largest else self._independent(batch, step)

    def _window(self, batch: Batch, step: Step) -> Tensor:
        """Without replacement: one permutation of all samples a step, of which each row takes a window at its own
        place and leaves its class out.

        A row's draw is a uniform K-subset of the other classes; rows of one step share the permutation, which costs a
        hundredth of a permutation a row.
        """
        length = min(self.total, self.count + self.largest)  # holds K of other classes whatever stands in it
        order = torch.randperm(self.total, generator=step.generator).to(batch.index.device)
        start = (self._uniform(batch, step, 1)[:, 0] * self.total).long()
        window = torch.cat([order, order[:length]]).unfold(0, length, 1)[start]  # (b, length)
        other = self.labels[window] != batch.target[:, None]
        chosen = other & (other.cumsum(dim=1, dtype=torch.int32) <= self.count)
        return window[chosen].view(len(window), self.count)

    def _independent(self, batch: Batch, step: Step) -> Tensor:
        size, start = self.size[batch.target, None], self.start[batch.target, None]
        place = (self._uniform(batch, step, self.count) * (self.total - size)).long()
        return self.order[place + size * (place >= start)]  # skip over the anchor's class
