"""NKD: the teacher's probability of the target as a soft label, and the other classes normalised among themselves."""

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class NKDOptions(Options):
    temperature: float = Field(1.0, gt=0, description="T of the other classes; the target's term has none.")
    gamma: float = Field(1.5, ge=0, description="γ: weight of the other classes.")


class NKD(Distiller):
    """−p_t(y) · log p_s(y) + γ · T² · H(q_t, q_s), mean over the batch; H is the cross-entropy and q = softmax(z / T)
    over the C − 1 other classes. Terms `target` and `others`.

    γ = 1.5 and T = 1 are the paper's for ImageNet.
    """

    Options = NKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = (
        "Yang, Zeng, Li, Zhang, Yuan, Li: From Knowledge Distillation to Self-Knowledge Distillation: A Unified "
        "Approach with Normalized Loss and Customized Soft Labels. ICCV 2023, arXiv 2303.13005"
    )
    scheduled = frozenset({"temperature", "gamma"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T, y = self.options.temperature, batch.target[:, None]
        log_p_s = F.log_softmax(student.logits, dim=1).gather(1, y)
        p_t = F.softmax(teacher.logits, dim=1).gather(1, y)
        C = student.logits.shape[1]
        others = (y + torch.arange(1, C, device=y.device)) % C  # (B, C − 1): all classes but y
        z_s, z_t = student.logits.gather(1, others), teacher.logits.gather(1, others)
        return {
            "target": -(p_t * log_p_s).mean(),
            "others": self.options.gamma * T**2 * F.cross_entropy(z_s / T, F.softmax(z_t / T, dim=1)),
        }


@hookimpl
def kdray_distillers():
    return [DistillerSpec("nkd", NKD)]
