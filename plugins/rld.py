"""Refined logits: from the teacher only its confidence and the order of the classes that it ranks below the label."""

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class RLDOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T of the masked correlation.")
    temperature_confidence: float = Field(4.0, gt=0, description="T of the sample confidence.")
    alpha: float = Field(1.0, ge=0, description="α: weight of the sample confidence (SCD).")
    beta: float = Field(8.0, ge=0, description="β: weight of the masked correlation (MCD).")


class RLD(Distiller):
    """α · T_c² · KL(b_t ‖ b_s) + β · T² · KL(q_t ‖ q_s), mean over the batch. Terms `confidence` and `correlation`.

    b_s = (p_s(y), 1 − p_s(y)) of the label, b_t = (max p_t, 1 − max p_t) of whatever the teacher holds most likely;
    q = softmax over the classes whose teacher logit lies below that of the label. A sample without such a class adds
    nothing to `correlation`. The published code has T_c = 1 by default; its command for CIFAR-100 sets T_c = T.
    """

    Options = RLDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = "Sun, Chen, Lyu, Chen, Chen, Wang: Knowledge Distillation with Refined Logits. ICCV 2025, arXiv 2408.07703"
    published = Published(
        resnet8x4=76.64,
        wrn_16_2=76.02,
        source="as quoted in the README of DSKD (Shao Hu, decoupling and standardization)",
    )
    scheduled = frozenset({"temperature", "temperature_confidence", "alpha", "beta"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        o, z_s, z_t = self.options, student.logits, teacher.logits
        y, top = batch.target[:, None], z_t.argmax(dim=1, keepdim=True)
        b_s = binary(z_s / o.temperature_confidence, y)
        b_t = binary(z_t / o.temperature_confidence, top)
        masked = z_t >= z_t.gather(1, y)
        q_s, q_t = (F.log_softmax((z / o.temperature).masked_fill(masked, NEVER), dim=1) for z in (z_s, z_t))
        return {
            "confidence": o.alpha
            * o.temperature_confidence**2
            * F.kl_div(b_s, b_t, reduction="batchmean", log_target=True),
            "correlation": o.beta * o.temperature**2 * F.kl_div(q_s, q_t, reduction="batchmean", log_target=True),
        }


NEVER = -1e9  # finite: where all is masked, both softmax are uniform and their divergence is 0


def binary(z, index):
    """log (p, 1 − p) of the class at `index`, (B, 2)."""
    rest = z.scatter(1, index, NEVER).logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([z.gather(1, index), rest], dim=1), dim=1)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("rld", RLD)]
