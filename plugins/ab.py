"""Activation boundaries: before the main training the student learns which of the teacher's neurons fire."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import (
    Distiller,
    DistillerSpec,
    MapChoice,
    Options,
    Published,
    Requires,
    Stage,
    hookimpl,
    map_connector,
    paired_maps,
)


class ABOptions(Options):
    init_epochs: int = Field(30, ge=1, description="Epochs of the first stage, which is all of the method.")
    margin: float = Field(1.0, gt=0, description="μ: how far beyond the boundary the student's response has to lie.")
    maps: MapChoice = None


class AB(Distiller):
    """Stage `init`: 3/1000 Σ_l 2^(l − n + 1) · (1/B) Σ [z_t > 0] (μ − z_s)₊² + [z_t ≤ 0] (μ + z_s)₊², l = 0 … n − 1.

    z are the maps before their last activation, the student's through a connector where shapes differ: convolution and
    batch norm, trained in this stage only. The main loop has no term: there only the other losses train, and the
    weight has no effect. Layer factors and scale are RepDistiller's.
    """

    Options = ABOptions
    requires = Requires(student={"preactivations"}, teacher={"preactivations"})
    paper = (
        "Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons. "
        "AAAI 2019, arXiv 1811.03233"
    )
    published = Published(resnet8x4=73.17, wrn_16_2=72.50, source="RepDistiller README, last epoch, 5 runs")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shapes_s, shapes_t = setup.student.preactivations, setup.teacher.preactivations
        self.maps = paired_maps("ab", setup, "preactivations", options.maps)
        self.connectors = nn.ModuleList(connector(shapes_s[i], shapes_t[i]) for i in self.maps)

    def stages(self):
        return [Stage("init", self.options.init_epochs, self.boundaries, student=True, modules=(self.connectors,))]

    def boundaries(self, student, teacher, batch, step):
        loss, margin, n = 0, self.options.margin, len(self.maps)
        for layer, (i, connect) in enumerate(zip(self.maps, self.connectors)):
            z_s, z_t = connect(student.preactivations[i]), teacher.preactivations[i]
            miss = torch.where(z_t > 0, F.relu(margin - z_s), F.relu(margin + z_s))
            loss = loss + 2.0 ** (layer - n + 1) * miss.square().sum() / len(z_s)
        return 3 / 1000 * loss

    def forward(self, student, teacher, batch, step):
        return {}


def connector(shape_s, shape_t):
    """From maps of shape_s = (C, H, W) to maps of shape_t."""
    if shape_s == shape_t:
        return nn.Identity()
    return nn.Sequential(map_connector("ab", shape_s, shape_t), nn.BatchNorm2d(shape_t[0]))


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ab", AB)]
