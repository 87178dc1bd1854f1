"""Correlation congruence: relations between a batch's embeddings, in the paper's form or the one that was published."""

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class CCOptions(Options):
    form: Literal["published", "paper"] = Field(
        "published",
        description="`published`: RepDistiller's loss, over neighbours in the batch. `paper`: the congruence of kernel "
        "matrices.",
    )
    dim: int = Field(128, gt=0, description="Of `published`: width of the linear embeddings that are compared.")
    gamma: float = Field(0.4, gt=0, description="Of `paper`: γ of the Gaussian kernel exp(−γ ‖x − y‖²).")
    order: int = Field(2, ge=1, description="Of `paper`: P, the highest order of the kernel's Taylor expansion.")


class CC(Distiller):
    """`published`: with δ_i = |W_s e_s,i − W_t e_t,i|, the mean over neighbours i, i + 1 of the global batch of
    ⟨δ_i, δ_i+1⟩; both W train. It is RepDistiller's loss and gave its numbers, and it is not the paper's.

    `paper`: ‖K_s − K_t‖²_F / B², K_ij = Σ_p≤P exp(−2γ) (2γ)^p / p! ⟨x_i, x_j⟩^p: the Gaussian kernel on embeddings x
    of length 1, ‖x − y‖² = 2 − 2 ⟨x, y⟩, expanded to order P. It has no parameters. γ = 0.4 and P = 2 are what public
    reimplementations of this form use.
    """

    Options = CCOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = "Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang: Correlation Congruence for Knowledge Distillation. ICCV 2019"
    published = Published(
        resnet8x4=72.97, wrn_16_2=73.56, source="RepDistiller README, last epoch, 5 runs, form `published`"
    )
    scope = "batch"
    scheduled = frozenset({"gamma"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        if options.form == "published":
            self.embed_s = nn.Linear(setup.student.embedding[0], options.dim)
            self.embed_t = nn.Linear(setup.teacher.embedding[0], options.dim)

    def forward(self, student, teacher, batch, step):
        if self.options.form == "paper":
            e_s, e_t = step.gather(student.embedding, differentiable=True), step.gather(teacher.embedding)
            return F.mse_loss(self.kernel(e_s), self.kernel(e_t))
        delta = (self.embed_s(student.embedding) - self.embed_t(teacher.embedding)).abs()
        delta = step.gather(delta, differentiable=True)
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)  # a batch of one has no neighbours: 0, not NaN

    def kernel(self, e):
        gamma, x = self.options.gamma, F.normalize(e, dim=1)
        orders = range(self.options.order + 1)
        return math.exp(-2 * gamma) * sum((2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in orders)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("cc", CC)]
