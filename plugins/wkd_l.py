"""WKD-L: the cost of turning the student's probabilities into the teacher's, where related classes lie close."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class WKDLOptions(Options):
    temperature: float = Field(8.0, gt=0, description="T of the classes other than the target.")
    gamma: float = Field(600.0, ge=0, description="Weight of the distance beside the target's term.")
    sharpness: float = Field(1.0, gt=0, description="κ: cost = 1 − exp(−κ · distance of the classes).")
    # A cost is below 1: exp(−1 / 0.02) is still a number in float32.
    regularisation: float = Field(0.05, ge=0.02, description="λ: weight of the plan's entropy.")
    iterations: int = Field(10, ge=1, description="Of Sinkhorn's algorithm; gradients flow through all of them.")


class WKDL(Distiller):
    """Wasserstein distance of the non-target probabilities, at a cost that the teacher's classifier tells.

    −p_t(y) · log p_s(y) + γ · ⟨Q, C⟩, mean over the batch. Terms `target` and `transport`.

    Q moves softmax(z_s / T) to softmax(z_t / T), both over the C − 1 other classes, at least ⟨Q, C⟩ − λ · entropy,
    after some iterations of Sinkhorn. C_jk = 1 − exp(−κ (1 − cos(w_j, w_k))) with the rows of the teacher's classifier.

    That relation of classes is one of the two that the published code has. Its published accuracies are with the other,
    the linear CKA of two classes' features, whose k-th picture of a class is paired with the k-th of another. The
    scaling vectors are kept as logarithms, without the constants that the published code adds to divisors, and a
    target class has no share rather than being cut out of the cost: nothing is larger than B × C and C × C.
    """

    Options = WKDLOptions
    requires = Requires(student={"logits"}, teacher={"logits", "head"})
    paper = (
        "Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation. "
        "NeurIPS 2024, arXiv 2412.08139"
    )
    scheduled = frozenset({"temperature", "gamma", "regularisation"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        w = F.normalize(setup.teacher_head[0].detach(), dim=1)
        distance = (1 - w @ w.T).clamp(min=0)
        self.register_buffer("cost", 1 - torch.exp(-options.sharpness * distance))

    def forward(self, student, teacher, batch, step):
        T, y = self.options.temperature, batch.target[:, None]
        log_p_s = F.log_softmax(student.logits, dim=1).gather(1, y)
        p_t = F.softmax(teacher.logits, dim=1).gather(1, y)
        is_target = torch.zeros_like(student.logits, dtype=torch.bool).scatter_(1, y, True)
        log_a, log_b = (
            F.log_softmax((z / T).masked_fill(is_target, -math.inf), dim=1) for z in (student.logits, teacher.logits)
        )
        return {
            "target": -(p_t * log_p_s).mean(),
            "transport": self.options.gamma * self.transport(log_a, log_b, is_target).mean(),
        }

    def transport(self, log_a, log_b, is_target):
        """⟨Q, C⟩ (B,), where Q = diag(u) K diag(v) and K = exp(−C / λ)."""
        cost = self.cost.to(log_a.dtype)
        K = torch.exp(-cost / self.options.regularisation)
        log_a, log_b = log_a.masked_fill(is_target, 0), log_b.masked_fill(is_target, 0)
        log_u = torch.zeros_like(log_a)
        for _ in range(self.options.iterations):
            log_v = log_b - log_product(log_u, K, is_target)
            log_u = log_a - log_product(log_v, K, is_target)
        v, most = scaled(log_v, is_target)
        u = (log_u.masked_fill(is_target, -math.inf) + most).exp()
        return (u * (v @ (K * cost))).sum(dim=1)


def log_product(log_x, K, is_target):
    """log(K x) (B, C) for each sample's x without its target; K is symmetric."""
    x, most = scaled(log_x, is_target)
    return (x @ K).log() + most


def scaled(log_x, is_target):
    """x without the target as (x / most, log most), so that the largest is 1."""
    log_x = log_x.masked_fill(is_target, -math.inf)
    most = log_x.amax(dim=1, keepdim=True).detach()
    return torch.exp(log_x - most), most


@hookimpl
def kdray_distillers():
    return [DistillerSpec("wkd_l", WKDL)]
