"""What is made of the scores of anchors with their positives and negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..distiller import Step


@dataclass
class Scores:
    """Inner products of b anchors: positive (b, P), negative (b, K). The masks, of the same shapes, mark those that
    count; None: all of them."""

    positive: Tensor
    negative: Tensor
    is_positive: Tensor | None = None
    is_negative: Tensor | None = None

    def __post_init__(self):
        self.positives = _number(self.positive, self.is_positive)  # (b,)
        self.negatives = _number(self.negative, self.is_negative)  # M, (b,)


def _number(scores: Tensor, mask: Tensor | None) -> Tensor:
    return torch.full_like(scores[:, 0], scores.shape[1]) if mask is None else mask.sum(dim=1).to(scores)


def _only(x: Tensor, mask: Tensor | None, otherwise: float) -> Tensor:
    return x if mask is None else x.masked_fill(~mask, otherwise)


def infonce(scores: Scores, temperature: float) -> Tensor:
    """−log of a positive's share in the softmax over all positives and negatives of its anchor, mean over the positives
    (the mean outside of the logarithm: L_out of Khosla et al., Supervised Contrastive Learning, equation 2), then over
    the anchors."""
    positive, negative = scores.positive / temperature, scores.negative / temperature
    total = torch.logaddexp(
        _only(positive, scores.is_positive, -torch.inf).logsumexp(dim=1),
        _only(negative, scores.is_negative, -torch.inf).logsumexp(dim=1),
    )
    return (total - _only(positive, scores.is_positive, 0).sum(dim=1) / scores.positives).mean()


def nce(scores: Scores, temperature: float, Z: Tensor, num_samples: int) -> Tensor:
    """−E[log h(positive)] − M · E[log(1 − h(negative))] (Tian et al., equation 18), mean over the anchors, with the
    critic h of their equation 19 on exp(score / τ) / Z; N = num_samples."""
    c, eps = (scores.negatives / num_samples)[:, None], 1e-7  # M / N
    positive = (scores.positive / temperature).exp() / Z
    # Masked before the logarithm: in a row without negatives it is log 0, whose gradient is NaN.
    h = _only(positive / (positive + c + eps), scores.is_positive, 1)
    # −log(1 − h) = log((exp(score / τ) / Z + eps) / c + 1).
    c = torch.where(c > 0, c, 1)  # without negatives nothing is summed
    minus_log_not_h = _SumLog.apply(scores.negative, temperature, -(Z * c).log(), 1 + eps / c, scores.is_negative)
    return (minus_log_not_h - h.log().sum(dim=1) / scores.positives).mean()


class _SumLog(torch.autograd.Function):
    """Σ_k log(exp(x_k / τ + a) + b) over the marked columns: x (b, K) -> (b,). a, b (b, 1).

    Written out because autograd's own steps pass over (b, K) memory twice as often, which was a third of the loss's
    time. log, not log1p: that would be ten times slower, and the sum over K needs no more digits.
    """

    @staticmethod
    def forward(ctx, x, temperature, a, b, mask):
        e = torch.add(a, x, alpha=1 / temperature).exp_()
        total = e + b
        slope = e.div_(total)
        if mask is not None:
            slope.masked_fill_(~mask, 0)
            total.masked_fill_(~mask, 1)
        ctx.slope, ctx.temperature = slope, temperature
        return total.log_().sum(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return ctx.slope * (gradient[:, None] / ctx.temperature), None, None, None, None


@torch.no_grad()
def partition(scores: Scores, temperature: float, num_samples: int, step: Step) -> Tensor:
    """Z makes the scores a distribution over the N samples: the mean of exp(score / τ) over the global batch, times
    N."""
    total = _only((scores.positive / temperature).exp(), scores.is_positive, 0).sum(dim=1)
    total += _only((scores.negative / temperature).exp(), scores.is_negative, 0).sum(dim=1)
    return step.gather(total).sum() / step.gather(scores.positives + scores.negatives).sum() * num_samples
