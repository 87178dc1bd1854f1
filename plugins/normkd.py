"""NormKD: each sample has temperatures of its own, as large as its logits are spread."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class NormKDOptions(Options):
    temperature: float = Field(2.0, gt=0, description="T_norm: a sample's temperature in deviations of its logits.")


class NormKD(Distiller):
    """T_t² · KL(softmax(z_t / T_t) ‖ softmax(z_s / T_s)), mean over the batch, with the temperatures T = T_norm · σ(z)
    of each sample and each network; σ is the unbiased deviation of its logits.

    As in the published code, gradients flow through T_s, and the factor is the teacher's temperature.
    """

    Options = NormKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = (
        "Chi, Zheng, Li, Yang, Wu, Lin, Cai: NormKD: Normalized Logits for Knowledge Distillation. 2023, "
        "arXiv 2308.00520"
    )
    scheduled = frozenset({"temperature"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T_s, T_t = (self.temperature(net.logits) for net in (student, teacher))
        log_p_s = F.log_softmax(student.logits / T_s, dim=1)
        log_p_t = F.log_softmax(teacher.logits / T_t, dim=1)
        divergence = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim=1, keepdim=True)
        return (T_t**2 * divergence).mean()

    def temperature(self, z):
        """(B, 1). Equal logits have no spread to divide by; the bound keeps them at p = 1 / C."""
        return self.options.temperature * z.std(dim=1, keepdim=True).clamp_min(1e-7)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("normkd", NormKD)]
