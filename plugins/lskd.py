"""Logit standardisation: the student follows the shape of the teacher's logits, not their mean and spread."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class LSKDOptions(Options):
    temperature: float = Field(2.0, gt=0, description="T: the standardised logits are divided by it.")


class LSKD(Distiller):
    """T² · KL(softmax(Z(z_t) / T) ‖ softmax(Z(z_s) / T)), mean over the batch; Z takes the logits of a sample to mean 0
    and deviation 1.

    The deviation is the unbiased one, with 1e-7 added, as in the published code; so are T² and the weight of 9.
    """

    Options = LSKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = "Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation. CVPR 2024, arXiv 2403.01427"
    published = Published(
        resnet8x4=76.62, wrn_16_2=76.11, source="README of sunshangquan/logit-standardization-KD, best epoch"
    )
    scheduled = frozenset({"temperature"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        log_p_s = F.log_softmax(standardised(student.logits) / T, dim=1)
        log_p_t = F.log_softmax(standardised(teacher.logits) / T, dim=1)
        return T**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)


def standardised(z):
    return (z - z.mean(dim=1, keepdim=True)) / (z.std(dim=1, keepdim=True) + 1e-7)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("lskd", LSKD)]
