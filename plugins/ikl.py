"""IKL and GKL: the two parts of the divergence, weighted distances of logit differences and a soft cross-entropy."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class IKLOptions(Options):
    alpha: float = Field(1.0, ge=0, description="α: weight of the cross-entropy.")
    beta: float = Field(16.0, ge=0, description="β: weight of the distance of logit differences.")
    gamma: float = Field(0.05, ge=0, description="γ: power of the probabilities that weigh pairs of classes.")
    temperature: float = Field(4.0, gt=0, description="T of the cross-entropy.")
    weight_temperature: float = Field(4.0, gt=0, description="T of the teacher's probabilities that weigh the pairs.")
    prior: Literal["class", "sample"] = Field(
        "class",
        description="class: pairs are weighed by the teacher's mean probabilities for the sample's class in the epoch "
        "before (uniform in the first). sample: by its probabilities for the sample.",
    )


class IKL(Distiller):
    """Logit differences of pairs of classes, weighed by a prior, and the soft cross-entropy.

    With Δ_jk = z_j − z_k and w = p^γ of the prior: β/4 · Σ_i Σ_jk w_ij w_ik (Δ^t_ijk − Δ^s_ijk)² / Σ_i Σ_jk w_ij
    w_ik and α · H(softmax(z_t / T), softmax(z_s / T)), mean over the batch. Terms `differences` and `cross_entropy`.

    With d = z_t − z_s, Σ_jk w_j w_k (d_j − d_k)² = 2 W Σ_j w_j (d_j − d̄)², where W = Σ_j w_j and d̄ is d's mean under
    w: no array is larger than B × C. γ = 1 with the prior of the class is the first version of the paper, IKL; other
    powers are its second, GKL. The cross-entropy has no factor T²; its part of the gradient is small.
    """

    Options = IKLOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = (
        "Cui, Tian, Zhong, Qi, Yu, Zhang: Decoupled Kullback-Leibler Divergence Loss. NeurIPS 2024, arXiv 2305.13948"
    )
    scope = "batch"
    scheduled = frozenset({"alpha", "beta", "gamma", "temperature"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        C = setup.num_classes
        self.register_buffer("class_prior", torch.full((C, C), 1 / C))
        self.register_buffer("sums", torch.zeros(C, C))  # of this epoch: the teacher's probabilities by class
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self._epoch = -1

    def forward(self, student, teacher, batch, step):
        o, z_s, z_t = self.options, student.logits, teacher.logits.detach()
        p = F.softmax(z_t / o.weight_temperature, dim=1)
        if o.prior == "class":
            self.look(p, batch, step)
            p = self.class_prior[batch.target].to(p.dtype)
        w = p**o.gamma
        W = w.sum(dim=1, keepdim=True)
        d = z_t - z_s
        mean = (w * d).sum(dim=1, keepdim=True) / W
        distance = 2 * W[:, 0] * (w * (d - mean) ** 2).sum(dim=1)
        scale = step.gather(W[:, 0] ** 2).mean()
        return {
            "differences": o.beta / 4 * distance.mean() / scale,
            "cross_entropy": o.alpha * F.cross_entropy(z_s / o.temperature, F.softmax(z_t / o.temperature, dim=1)),
        }

    @torch.no_grad()
    def look(self, p, batch, step):
        # Asked of the tensor once an epoch, not at every step: it may lie on a GPU.
        if step.epoch != self._epoch and step.epoch != self.epoch:
            seen = self.sums.sum(dim=1, keepdim=True)
            # A class that the epoch did not show keeps the prior it had.
            self.class_prior.copy_(torch.where(seen > 0, self.sums / seen.clamp(min=1e-12), self.class_prior))
            self.sums.zero_()
            self.epoch.fill_(step.epoch)
        self._epoch = step.epoch
        self.sums.index_add_(0, step.gather(batch.target), step.gather(p).to(self.sums))


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ikl", IKL)]
