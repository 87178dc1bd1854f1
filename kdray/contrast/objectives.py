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
    # −log(1 − h) = log(1 + (exp(score / τ) / Z + eps) / c), in as few passes over (b, K) as can be. log1p would be
    # ten times slower, and the sum over K needs no more digits.
    c = torch.where(c > 0, c, 1)  # without negatives nothing is summed
    ratio = torch.add(-(Z * c).log(), scores.negative, alpha=1 / temperature).exp_()
    minus_log_not_h = _only((ratio + (1 + eps / c)).log(), scores.is_negative, 0).sum(dim=1)
    return (minus_log_not_h - h.log().sum(dim=1) / scores.positives).mean()


@torch.no_grad()
def partition(scores: Scores, temperature: float, num_samples: int, step: Step) -> Tensor:
    """Z makes the scores a distribution over the N samples: the mean of exp(score / τ) over the global batch, times
    N."""
    total = _only((scores.positive / temperature).exp(), scores.is_positive, 0).sum(dim=1)
    total += _only((scores.negative / temperature).exp(), scores.is_negative, 0).sum(dim=1)
    return step.gather(total).sum() / step.gather(scores.positives + scores.negatives).sum() * num_samples
