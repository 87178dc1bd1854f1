"""Transformed teacher matching (TTM, WTTM): the teacher alone is softened, the student follows as it is."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class TTMOptions(Options):
    gamma: float = Field(0.1, gt=0, description="γ: the teacher's probabilities are raised to it (1 / temperature).")
    weighted: bool = Field(
        False, description="Weight each sample by Σ p_t^γ, which is large where the teacher is unsure (WTTM)."
    )


class TTM(Distiller):
    """KL(q ‖ softmax(z_s)), mean over the batch, where q = p_t^γ / Σ p_t^γ = softmax(γ · z_t).

    The student has no temperature, hence no T² either. `weighted` multiplies each sample's divergence by Σ p_t^γ.
    """

    Options = TTMOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = "Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching. ICLR 2024, arXiv 2402.11148"
    published = Published(
        resnet8x4=76.17, wrn_16_2=76.23, source="README of zkxufo/TTM, 5 runs; weighted: 76.06 and 76.37"
    )
    scheduled = frozenset({"gamma"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        log_power = self.options.gamma * F.log_softmax(teacher.logits, dim=1)
        log_q = F.log_softmax(log_power, dim=1)
        log_p_s = F.log_softmax(student.logits, dim=1)
        divergence = F.kl_div(log_p_s, log_q, reduction="none", log_target=True).sum(dim=1)
        if self.options.weighted:
            divergence = log_power.exp().sum(dim=1) * divergence
        return divergence.mean()


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ttm", TTM)]
