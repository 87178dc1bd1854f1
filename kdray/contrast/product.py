"""Scores of anchors with a whole memory."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Of these inner products, those of the rows `drawn` (b, K) of the memory: (b, K)."""
    return _DrawnProduct.apply(anchor, memory, drawn)


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


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T. For fp32 on CPUs by oneDNN, in full precision: torch's own choice, MKL, takes twice as long on
    processors that are not Intel's."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.T
