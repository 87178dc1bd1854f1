"""CTKD: knowledge distillation at a temperature that learns to make the student's task harder."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class CTKDOptions(Options):
    start: float = Field(1.0, gt=0, description="The temperature's lower bound.")
    range: float = Field(20.0, gt=0, description="How far above `start` the temperature may go.")
    epochs: int = Field(10, gt=0, description="Epochs over which |λ| grows from 0 to 1, along a cosine.")


class CTKD(Distiller):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), mean over the batch, where T = start + range · sigmoid(θ).

    θ is one learned number, 1 at the beginning, and the sign of its gradient is turned: it climbs where the student
    descends. λ = −(1 − cos(π · min(e, epochs) / epochs)) / 2 scales its gradient in epoch e = 1, 2, …, so that the
    student meets an easy task first. This is the paper's global temperature.
    """

    Options = CTKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = (
        "Li, Li, Yang, Zhao, Song, Luo, Li, Yang: Curriculum Temperature for Knowledge Distillation. AAAI 2023, "
        "arXiv 2211.16231"
    )
    published = Published(
        resnet8x4=73.39,
        wrn_16_2=75.45,
        source="README of sunshangquan/logit-standardization-KD, best epoch; WRN also in that of zhengli97/CTKD",
    )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, student, teacher, batch, step):
        o = self.options
        done = min(step.epoch + 1, o.epochs) / o.epochs
        lambda_ = (math.cos(math.pi * done) - 1) / 2
        # The value of θ with λ times its gradient.
        theta = lambda_ * self.theta + (1 - lambda_) * self.theta.detach()
        T = o.start + o.range * torch.sigmoid(theta)
        log_p_s = F.log_softmax(student.logits / T, dim=1)
        log_p_t = F.log_softmax(teacher.logits / T, dim=1)
        return T**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ctkd", CTKD)]
