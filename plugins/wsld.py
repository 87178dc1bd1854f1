"""Weighted soft labels: the teacher counts for less where the student already beats it."""

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class WSLDOptions(Options):
    temperature: float = Field(2.0, gt=0, description="T: both logits are divided by it before the softmax.")


class WSLD(Distiller):
    """w · T² · H(softmax(z_t / T), softmax(z_s / T)), mean over the batch, H the cross-entropy and
    w = 1 − exp(−CE(z_s, y) / CE(z_t, y)) a constant of each sample.

    T = 2 with a weight of 2.5 is the paper's for ImageNet.
    """

    Options = WSLDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = (
        "Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang: Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance "
        "Tradeoff Perspective. ICLR 2021, arXiv 2102.00650"
    )
    scheduled = frozenset({"temperature"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        ce_s = F.cross_entropy(student.logits.detach(), batch.target, reduction="none")
        ce_t = F.cross_entropy(teacher.logits, batch.target, reduction="none")
        w = -torch.expm1(-ce_s / (ce_t + 1e-7))
        soft = F.cross_entropy(student.logits / T, F.softmax(teacher.logits / T, dim=1), reduction="none")
        return T**2 * (w * soft).mean()


@hookimpl
def kdray_distillers():
    return [DistillerSpec("wsld", WSLD)]
