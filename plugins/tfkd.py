"""Teacher-free distillation: a virtual teacher that is nearly sure of the label, and softened."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class TfKDOptions(Options):
    temperature: float = Field(20.0, gt=0, description="τ: the virtual teacher's probabilities are divided by it.")
    correct: float = Field(0.99, gt=0, lt=1, description="a: the virtual teacher's probability of the label.")


class TfKD(Distiller):
    """KL(softmax(u / τ) ‖ softmax(z_s)), mean over the batch; the virtual teacher has u = a for the label and
    (1 − a) / (C − 1) for each other class. This is Tf-KD_reg.

    As in the published code, the softmax is of probabilities, not of logits, and the student has no temperature. That
    code takes the mean over all B · C elements and a multiplier; 100, with CIFAR-100, makes it the mean over the batch.
    """

    Options = TfKDOptions
    requires = Requires(student={"logits"})
    paper = (
        "Yuan, Tay, Li, Wang, Feng: Revisiting Knowledge Distillation via Label Smoothing Regularization. CVPR 2020, "
        "arXiv 1909.11723"
    )
    scheduled = frozenset({"temperature"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        a, z_s = self.options.correct, student.logits
        u = z_s.new_full(z_s.shape, (1 - a) / (z_s.shape[1] - 1)).scatter(1, batch.target[:, None], a)
        log_p_t = F.log_softmax(u / self.options.temperature, dim=1)
        return F.kl_div(F.log_softmax(z_s, dim=1), log_p_t, reduction="batchmean", log_target=True)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("tfkd", TfKD)]
