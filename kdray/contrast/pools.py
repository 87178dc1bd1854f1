"""Where the positives and negatives of an anchor come from.

bank        a row for every training sample and side, read before the step writes it; K negatives drawn for each anchor
shared      the same, K samples drawn for the whole batch
all         the same, without a draw
queue       the last K embeddings of each side; the sample's own positive is the other network's fresh embedding
batch       the rows of the global batch
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distiller import Batch, Setup, Step
from ..errors import ConfigError
from .draws import ForAll, OtherClasses, SameClass, need_classes
from .objectives import Scores
from .options import AllOptions, BankOptions, BatchOptions, Negatives, QueueOptions, SharedOptions
from .product import drawn_product, product
from .ring import Ring, random_rows

Positives = Literal["own", "class"]


def negative_pool(options: Negatives, dim: int, setup: Setup, positives: Positives = "own") -> nn.Module:
    """The pool for `options`. Call it with (g_s, g_t, batch, step) for the `Scores` of both directions: the student's
    anchors, then the teacher's. `update(batch, step)` comes after the backward pass.

    `ahead(g_t, batch, step)` is what a pool can do before the student has spoken, the scores of the teacher's anchors
    last; it is taken as a sixth argument. None: nothing.

    positives: `own`, the other network's embedding of the anchor's sample; `class`, all embeddings of the anchor's
    class that the pool holds, its own included. A fifth argument (k_s, k_t), where given, is what the anchors meet and
    the pool keeps in the place of (g_s, g_t).
    """
    if positives == "class" and getattr(options, "other", "class") == "sample":
        raise ConfigError("`positives: class` attracts what `negatives: {other: sample}` repels: change one of them")
    if positives == "class" and getattr(options, "mode", "exact") == "relax":
        raise ConfigError("`mode: relax` draws one sample of the class, `positives: class` takes all: choose one")
    kinds = {"bank": Bank, "shared": Bank, "all": Bank, "queue": Queue, "batch": InBatch}
    return kinds[options.kind](options, dim, setup, positives == "class")


class Bank(nn.Module):
    def __init__(self, options: BankOptions | SharedOptions | AllOptions, dim: int, setup: Setup, by_class: bool):
        super().__init__()
        need_classes(setup.labels)
        self.by_class, self.momentum = by_class, options.momentum
        self.draw = None
        if options.kind == "bank":
            self.draw = OtherClasses(options.count, setup.labels)
        elif options.kind == "shared":
            self.draw = ForAll(options.count, setup.num_samples)
        self.same = SameClass(setup.labels) if options.kind == "bank" and options.mode == "relax" else None
        self.register_buffer("labels", setup.labels, persistent=False)
        dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, random_rows(setup.num_samples, dim, setup.generator, dtype))

    def ahead(self, g_t: Tensor, batch: Batch, step: Step) -> tuple[Callable[[Tensor, Tensor], Scores], Scores]:
        drawn = self.draw(batch, step) if self.draw else None
        own = self.same(batch, step) if self.same else batch.index
        for_all = drawn is not None and drawn.dim() == 1
        same = others = None  # masks (b, N) and (b, K), where they are needed
        if self.by_class or drawn is None:
            same = self.labels[None, :] == batch.target[:, None]
        if for_all:
            others = self.labels[drawn] != batch.target[:, None]

        def scores(anchor: Tensor, memory: Tensor) -> Scores:
            every = product(anchor, memory) if same is not None else None
            positive = (every, same) if self.by_class else ((anchor * memory[own]).sum(dim=1, keepdim=True), None)
            if drawn is None:
                negative = (every, ~same)
            elif for_all:
                negative = (product(anchor, memory[drawn]), others)
            else:
                negative = (drawn_product(anchor, memory, drawn), None)
            return Scores(positive[0], negative[0], positive[1], negative[1])

        return scores, scores(g_t, self.memory_s)

    def forward(
        self, g_s: Tensor, g_t: Tensor, batch: Batch, step: Step, keys=None, ahead=None
    ) -> tuple[Scores, Scores]:
        scores, of_teacher = ahead or self.ahead(g_t, batch, step)
        self.fresh = tuple(k.detach() for k in keys or (g_s, g_t))
        return scores(g_s, self.memory_t), of_teacher

    @torch.no_grad()
    def update(self, batch: Batch, step: Step) -> None:
        index = step.gather(batch.index)
        # A sample that stands twice in a batch keeps its last row, in global order, on every worker: both write it.
        places = torch.arange(len(index), device=index.device)
        last = torch.where(index[None, :] == index[:, None], places, 0).amax(dim=1)
        m = self.momentum
        for memory, fresh in zip((self.memory_s, self.memory_t), self.fresh):
            fresh = step.gather(fresh)[last]
            memory[index] = F.normalize(m * memory[index].to(fresh.dtype) + (1 - m) * fresh, dim=1).to(memory.dtype)


class Queue(Ring):
    """Scored before it is written, and an earlier embedding of the anchor's own sample does not count: no sample is its
    own negative."""

    def __init__(self, options: QueueOptions, dim: int, setup: Setup, by_class: bool):
        super().__init__(options.count, setup.generator, queue_s=dim, queue_t=dim)
        self.by_class, self.other = by_class, options.other
        for name in ("classes", "samples"):  # −1: still random, of no class and no sample
            self.register_buffer(name, torch.full((options.count,), -1))

    def ahead(self, g_t: Tensor, batch: Batch, step: Step) -> None:
        return None

    def forward(
        self, g_s: Tensor, g_t: Tensor, batch: Batch, step: Step, keys=None, ahead=None
    ) -> tuple[Scores, Scores]:
        k_s, k_t = keys or (g_s, g_t)
        same = self.classes[None, :] == batch.target[:, None]
        itself = self.samples[None, :] == batch.index[:, None]
        counts = ~(same if self.other == "class" else itself)
        positive = torch.cat([torch.ones_like(same[:, :1]), same], dim=1) if self.by_class else None

        def scores(anchor: Tensor, key: Tensor, queue: Tensor) -> Scores:
            own, queued = (anchor * key).sum(dim=1, keepdim=True), product(anchor, queue.to(anchor.dtype))
            return Scores(torch.cat([own, queued], dim=1) if self.by_class else own, queued, positive, counts)

        self.fresh = (k_s.detach(), k_t.detach())
        return scores(g_s, k_t, self.queue_t), scores(g_t, k_s, self.queue_s)

    def update(self, batch: Batch, step: Step) -> None:
        k_s, k_t = self.fresh
        self.push(step, queue_s=k_s, queue_t=k_t, classes=batch.target, samples=batch.index)


class InBatch(nn.Module):
    """Gradients flow to anchors and keys alike, also to those of other workers."""

    def __init__(self, options: BatchOptions, dim: int, setup: Setup, by_class: bool):
        super().__init__()
        self.by_class, self.other = by_class, options.other

    def ahead(self, g_t: Tensor, batch: Batch, step: Step) -> None:
        return None

    def forward(
        self, g_s: Tensor, g_t: Tensor, batch: Batch, step: Step, keys=None, ahead=None
    ) -> tuple[Scores, Scores]:
        k_s, k_t = keys or (g_s, g_t)
        mine = batch.target if self.other == "class" else batch.index
        same = step.gather(mine)[None, :] == mine[:, None]

        def scores(anchor: Tensor, key: Tensor) -> Scores:
            own, all_scores = (anchor * key).sum(dim=1, keepdim=True), anchor @ step.gather(key, differentiable=True).T
            return Scores(all_scores if self.by_class else own, all_scores, same if self.by_class else None, ~same)

        return scores(g_s, k_t), scores(g_t, k_s)

    def update(self, batch: Batch, step: Step) -> None:
        pass
