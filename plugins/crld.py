"""CRLD: either view of the student follows either view of the teacher, weak and strong, where the teacher is sure."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class CRLDOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T: all logits are divided by it before the softmax.")
    within: float = Field(2.0, ge=0, description="Weight of the terms within a view.")
    cross: float = Field(0.5, ge=0, description="Weight of the terms across the views.")
    label: float = Field(1.0, ge=0, description="Weight of the strong view's cross-entropy with the labels.")
    sure_weak: float = Field(
        0.9,
        ge=0,
        le=1,
        description="τ_w: samples count within the views if the teacher's top probability for the "
        "weak view, without T, is at least this.",
    )
    sure_strong: float = Field(
        0.2, ge=0, le=1, description="τ_s: samples count across the views if that for the strong view is at least this."
    )


class CRLD(Distiller):
    """Divergences of the views within and across the two networks, where the teacher is sure.

    With KL(t, s) = T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), views w and s, and 0 for samples of an unsure
    teacher, mean over all samples: `within` KL(t_w, s_w) + KL(t_s, s_s), `cross` KL(t_w, s_s) + KL(t_s, s_w), and
    `label`, the cross-entropy of the strong view.

    The weak view is the picture that all losses see. The cross-entropy of it is the loss `ce`'s business. Which of the
    two thresholds decides over which terms is as in the published code.
    """

    Options = CRLDOptions
    requires = Requires(student={"logits"}, teacher={"logits"}, views=("strong",))
    paper = (
        "Zhang, Liu, Cai, Ma: Cross-View Consistency Regularisation for Knowledge Distillation. ACM Multimedia 2024, "
        "arXiv 2412.16493"
    )
    scheduled = frozenset({"temperature", "within", "cross", "label"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        o = self.options
        s_w, s_s = student.logits, student.views["strong"].logits
        t_w, t_s = teacher.logits, teacher.views["strong"].logits
        within = self.divergence(t_w, s_w) + self.divergence(t_s, s_s)
        cross = self.divergence(t_w, s_s) + self.divergence(t_s, s_w)
        return {
            "within": o.within * (within * sure(t_w, o.sure_weak)).mean(),
            "cross": o.cross * (cross * sure(t_s, o.sure_strong)).mean(),
            "label": o.label * F.cross_entropy(s_s, batch.target),
        }

    def divergence(self, z_t, z_s):
        """(B,)"""
        T = self.options.temperature
        log_p_s, log_p_t = F.log_softmax(z_s / T, dim=1), F.log_softmax(z_t / T, dim=1)
        return T**2 * F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim=1)


def sure(z, threshold):
    """1 where the top probability reaches the threshold, else 0."""
    return (F.softmax(z, dim=1).amax(dim=1) >= threshold).to(z.dtype)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("crld", CRLD)]
