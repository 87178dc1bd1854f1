"""Multi-level logit distillation: probabilities, relations of samples and of classes, at several temperatures."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class MLKDOptions(Options):
    temperatures: list[float] = Field(
        [2.0, 3.0, 4.0, 5.0, 6.0], min_length=1, description="T: the losses of all of them are added."
    )
    alignment: float = Field(0.9, ge=0, description="Weight of each of the three levels.")
    label: float = Field(0.1, ge=0, description="Weight of the strong view's cross-entropy with the labels.")


class MLKD(Distiller):
    """Divergence of the probabilities, and distances of their relations between samples and between classes.

    For P = softmax(z / T) (B, C) of either network, summed over the temperatures and the two views: `instance`
    T² · KL(P_t ‖ P_s), mean over samples; `batch` ‖P_t P_tᵀ − P_s P_sᵀ‖² / B; `class` ‖P_tᵀ P_t − P_sᵀ P_s‖² / C, where
    B is the global batch. Term `label`: the cross-entropy of the strong view.

    The published code departs from this: at two of the five temperatures the strong view's term is computed of the weak
    view; the strong view's relations are computed and not used; and masks for the half of the samples and of the
    classes with the lower confidence are multiplied with losses that are means or sums already, which halves them.
    """

    Options = MLKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"}, views=("strong",))
    paper = "Jin, Wang, Lin: Multi-Level Logit Distillation. CVPR 2023"
    published = Published(
        resnet8x4=77.08, wrn_16_2=76.63, source="README of logit-standardization-KD: published code, more epochs"
    )
    scope = "batch"
    scheduled = frozenset({"alignment", "label"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        terms = {"instance": 0.0, "batch": 0.0, "class": 0.0}
        views = [(student, teacher), (student.views["strong"], teacher.views["strong"])]
        for z_s, z_t in [(s.logits, t.logits) for s, t in views]:
            all_s, all_t = step.gather(z_s, differentiable=True), step.gather(z_t)
            for T in self.options.temperatures:
                log_p_s, log_p_t = F.log_softmax(z_s / T, dim=1), F.log_softmax(z_t / T, dim=1)
                terms["instance"] += T**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)
                P_s, P_t = F.softmax(all_s / T, dim=1), F.softmax(all_t / T, dim=1)
                B, C = P_s.shape
                terms["batch"] += (P_t @ P_t.T - P_s @ P_s.T).square().sum() / B
                terms["class"] += (P_t.T @ P_t - P_s.T @ P_s).square().sum() / C
        terms = {name: self.options.alignment * term for name, term in terms.items()}
        terms["label"] = self.options.label * F.cross_entropy(student.views["strong"].logits, batch.target)
        return terms


@hookimpl
def kdray_distillers():
    return [DistillerSpec("mlkd", MLKD)]
