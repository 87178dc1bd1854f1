"""Scores of anchors with a whole memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

AT_ONCE = 1 << 26
"""Numbers that are held at a time, scores with a memory or rows of it: 256 MiB in fp32, for each direction."""


def product(anchor: Tensor, memory: Tensor) -> Tensor:
    """anchor (b, d) with gradient, memory (N, d) without: inner products (b, N)."""
    return _Product.apply(anchor, memory)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, memory):
        ctx.memory = memory  # not saved by autograd: it is written after the backward pass, and then only
        return _linear(anchor, memory)

    @staticmethod
    def backward(ctx, gradient):
        return _linear(gradient.contiguous(), ctx.memory.T), None


def drawn_product(anchor: Tensor, memory: Tensor, drawn: Tensor) -> Tensor:
    """Of these inner products, those of the rows `drawn` (b, K) of the memory: (b, K). A memory too large for
    `AT_ONCE` is gone through in parts, so that a step needs no more room than that for it."""
    parts = memory.split(_rows_at_once(memory, len(anchor)))
    return (_DrawnProduct if len(parts) == 1 else _DrawnInParts).apply(anchor, memory, drawn)


class _DrawnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, memory, drawn):
        ctx.memory, ctx.every = memory, _linear(anchor, memory)
        ctx.save_for_backward(drawn)
        return ctx.every.gather(1, drawn)

    @staticmethod
    def backward(ctx, gradient):
        (drawn,) = ctx.saved_tensors
        # The scores are done with: their place in memory, (b, N), is at hand for what comes back.
        every = ctx.every.zero_().scatter_add_(1, drawn, gradient)
        return _linear(every, ctx.memory.T), None, None


class _DrawnInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, memory, drawn):
        ctx.memory, scores = memory, anchor.new_empty(drawn.shape)
        ctx.save_for_backward(drawn)
        for part, at, here in _parts(memory, drawn):
            torch.where(here, _linear(anchor, part).gather(1, at), scores, out=scores)
        return scores

    @staticmethod
    def backward(ctx, gradient):
        (drawn,) = ctx.saved_tensors
        of_anchor = 0
        for part, at, here in _parts(ctx.memory, drawn):
            every = gradient.new_zeros(len(gradient), len(part))
            every.scatter_add_(1, at, gradient * here)
            of_anchor = of_anchor + _linear(every, part.T)
        return of_anchor, None, None


def _rows_at_once(memory: Tensor, anchors: int) -> int:
    """Of the memory: neither their scores nor, where they are kept in bf16, they themselves may be too many numbers."""
    return max(1, AT_ONCE // max(anchors, memory.shape[1]))


def _parts(memory: Tensor, drawn: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of the memory, with the places of `drawn` in each, and which of them are really there."""
    start = 0
    for part in memory.split(_rows_at_once(memory, len(drawn))):
        at = drawn - start
        here = (at >= 0) & (at < len(part))
        yield part, at.clamp_(0, len(part) - 1), here
        start += len(part)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, in the arithmetic of x. For fp32 on CPUs by oneDNN, in full precision: torch's own choice, MKL,
    takes twice as long on processors that are not Intel's."""
    weight = weight.to(x.dtype)
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.T
