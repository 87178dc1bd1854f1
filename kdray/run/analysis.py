"""What two networks' answers say of them: functions of logits (N, C) and labels (N,), all computed in fp64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15
"""Of the confidence, as in Guo et al. (2017)."""
TEMPERATURES = (0.02, 50.0)
"""Between these the one is looked for that calibrates."""


class Reliability(NamedTuple):
    """By bin of the confidence, each (bins,). counts: pictures; confidence, accuracy: their means, 0 in an empty
    bin."""

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over pictures of their bin's |accuracy − confidence|, in 0..1."""
        gaps = (self.accuracy - self.confidence).abs()
        return float((self.counts * gaps).sum() / self.counts.sum().clamp(min=1))


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1 and top5 (shares), loss (mean cross-entropy) and samples, as an epoch's evaluation has them."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "top1": float(hits[:, 0].double().mean()),
        "top5": float(hits.any(1).double().mean()),
        "loss": nll(logits, labels),
        "samples": len(labels),
    }


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts (C, C): of row's pictures, how many were taken for column."""
    classes = logits.shape[1]
    return (labels * classes + logits.argmax(1)).bincount(minlength=classes**2).view(classes, classes)


def class_accuracy(counts: Tensor) -> Tensor:
    """(C,), of a confusion matrix; nan for a class without pictures."""
    return counts.diagonal().double() / counts.sum(1)


def reliability(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Reliability:
    """Of the likeliest class's probability at a temperature; bin i holds confidences in (i, i + 1] / BINS."""
    confidence, said = softened(logits, temperature).max(1)
    of = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    counts = of.bincount(minlength=BINS)
    some = counts.clamp(min=1)
    return Reliability(
        counts,
        of.bincount(confidence, BINS) / some,
        of.bincount((said == labels).double(), BINS) / some,
    )


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The one in `TEMPERATURES` with the smallest cross-entropy, which is convex in its inverse."""
    from scipy.optimize import minimize_scalar

    logits, (low, high) = logits.double(), map(math.log, TEMPERATURES)
    found = minimize_scalar(
        lambda x: float(F.cross_entropy(logits / math.exp(x), labels)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.exp(found.x)


def nll(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Negative log-likelihood: the mean cross-entropy, in nats; 0, as the ECE, of no pictures."""
    return float(F.cross_entropy(logits.double() / temperature, labels, reduction="sum")) / max(len(labels), 1)


class Calibration(NamedTuple):
    """`before` and `after` the logits are divided by the temperature, of the same pictures."""

    temperature: float
    before: Reliability
    after: Reliability
    nll_before: float
    nll_after: float


def calibrated(logits: Tensor, labels: Tensor, held_out: tuple[Tensor, Tensor] | None) -> Calibration:
    """The temperature is fitted on other pictures than those that the errors are of: on `held_out` (logits, labels), or
    on every second one, and the errors are then of the rest."""
    if held_out is None:
        held_out = logits[::2], labels[::2]
        logits, labels = logits[1::2], labels[1::2]
    temperature = best_temperature(*held_out)
    reliabilities = (reliability(logits, labels, at) for at in (1.0, temperature))
    return Calibration(temperature, *reliabilities, *(nll(logits, labels, at) for at in (1.0, temperature)))


def agreement(a: Tensor, b: Tensor) -> float:
    """The share of pictures that both take for the same class."""
    return float((a.argmax(1) == b.argmax(1)).double().mean())


def divergences(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of each picture (N,), in nats."""
    teacher, student = (F.log_softmax(x.double() / temperature, 1) for x in (teacher, student))
    return (teacher.exp() * (teacher - student)).sum(1)


def correlation_difference(teacher: Tensor, student: Tensor) -> Tensor:
    """(C, C): |correlation over pictures of two classes' logits, of the teacher's and of the student's| (figure 2 of
    Tian et al., 2020). A class whose logit never changes is correlated with none."""
    return (_correlation(teacher) - _correlation(student)).abs()


def _correlation(logits: Tensor) -> Tensor:
    found = torch.corrcoef(logits.double().T)
    return found.nan_to_num(0.0)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities (N, C) at a temperature."""
    return F.softmax(logits.double() / temperature, 1)
