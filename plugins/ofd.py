"""Overhaul of feature distillation: the student's maps before the ReLU follow the teacher's where it answers."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, Stage, hookimpl, paired_maps


class OFDOptions(Options):
    margin_epochs: int = Field(1, ge=1, description="Passes over the training set in which the margins are measured.")


class OFD(Distiller):
    """Σ_l 2^(l − n) · Σ_{c,h,w} d_p(σ_m(T_l), r_l(S_l)), mean over the batch; l = 1 … n, shallow to deep (Heo et al.).

    S, T: maps (C, H, W) of the stages before their last ReLU. r: a connector to the teacher's channels, 1×1 convolution
    and batch norm. σ_m(x) = max(x, m) with a margin m < 0 a channel. d_p, the partial distance: (t − s)², but 0 where
    s ≤ t ≤ 0, since there the ReLU makes both of them 0.

    m is the mean of the channel's negative values. Published code infers it from the weights of the batch norm in front
    of the ReLU, taking a normal distribution for granted. Here a first stage measures it on the teacher's answers to
    the training set, so any teacher will do. The two differ as far as the answers are not normal, and in channels that
    are hardly ever negative: published code gives them −3 deviations, a channel that never is has 0 here.

    Networks of different depth are paired from their last stage. Where sizes differ, the teacher's map is pooled to the
    student's. The sum over C·H·W is large: the published weight is 1e-3 on CIFAR-100.
    """

    Options = OFDOptions
    requires = Requires(student={"preactivations"}, teacher={"preactivations"})
    paper = (
        "Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation. ICCV 2019, arXiv 1904.01866"
    )
    scope = "batch"
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("ofd", setup, "preactivations")
        widths_s, widths_t = ([side.preactivations[i][0] for i in self.maps] for side in (setup.student, setup.teacher))
        self.connectors = nn.ModuleList(connector(s, t) for s, t in zip(widths_s, widths_t))
        self.register_buffer("negative_sum", torch.zeros(sum(widths_t)))  # of all channels of all stages, in order
        self.register_buffer("negative_count", torch.zeros(sum(widths_t)))
        self.register_buffer("margin", torch.zeros(sum(widths_t)))
        self.widths = widths_t

    def stages(self):
        return [Stage("margins", self.options.margin_epochs, self.look, finish=self.fix)]

    @torch.no_grad()
    def look(self, student, teacher, batch, step):
        maps = [teacher.preactivations[i] for i in self.maps]
        sums = torch.cat([x.clamp(max=0).sum(dim=(2, 3)) for x in maps], dim=1)
        counts = torch.cat([(x < 0).sum(dim=(2, 3)) for x in maps], dim=1)
        self.negative_sum += step.gather(sums).sum(dim=0)
        self.negative_count += step.gather(counts).sum(dim=0)
        return {}

    @torch.no_grad()
    def fix(self):
        self.margin.copy_(self.negative_sum / self.negative_count.clamp(min=1))

    def forward(self, student, teacher, batch, step):
        loss, layers = 0.0, zip(self.maps, self.connectors, self.margin.split(self.widths))
        for place, (i, connect, margin) in enumerate(layers, start=1):
            s, t = connect(student.preactivations[i]), teacher.preactivations[i]
            t = torch.maximum(F.adaptive_avg_pool2d(t, s.shape[2:]), margin[:, None, None])
            counted = (s > t) | (t > 0)
            loss = loss + 2.0 ** (place - len(self.maps)) * ((t - s) ** 2 * counted).sum(dim=(1, 2, 3)).mean()
        return loss


def connector(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ofd", OFD)]
