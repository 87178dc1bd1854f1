"""LumiNet: knowledge distillation on logits that are standardised class by class over the batch."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class LumiNetOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T: the standardised logits are divided by it.")


class LumiNet(Distiller):
    """KL(softmax(h_t / T) ‖ softmax(h_s / T)), mean over the batch, where h = (z − μ) / √(σ² + 1e-5); μ and σ² are the
    mean and the biased variance of each class's logit over the global batch.

    There is no T²: the published code multiplies by α² instead, which is the config's weight (α = 33: 1089). The
    loss depends on the batch size.
    """

    Options = LumiNetOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = (
        "Hossain, Elahi, Ramasinghe, Cheraghian, Rahman, Mohammed, Rahman: LumiNet: Perception-Driven Knowledge "
        "Distillation via Statistical Logit Calibration. arXiv 2310.03669"
    )
    published = Published(resnet8x4=77.50, wrn_16_2=76.38, source="README of ismail31416/LumiNet")
    scope = "batch"
    scheduled = frozenset({"temperature"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        h_s = perception(student.logits, step.gather(student.logits, differentiable=True))
        h_t = perception(teacher.logits, step.gather(teacher.logits))
        log_p_s, log_p_t = F.log_softmax(h_s / T, dim=1), F.log_softmax(h_t / T, dim=1)
        return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)


def perception(z, everyone):
    mean, variance = everyone.mean(dim=0), everyone.var(dim=0, correction=0)
    return (z - mean) / (variance + 1e-5).sqrt()


@hookimpl
def kdray_distillers():
    return [DistillerSpec("luminet", LumiNet)]
