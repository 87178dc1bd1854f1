"""Variational information distillation: the student's maps tell as much as they can of the teacher's."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, MapChoice, Options, Published, Requires, hookimpl, paired_maps, same_size


class VIDOptions(Options):
    maps: MapChoice = None
    init_variance: float = Field(5.0, gt=0.001, description="σ² of every channel at the start.")
    epsilon: float = Field(1e-5, gt=0, lt=0.001, description="Smallest σ².")


class VID(Distiller):
    """Σ_maps mean(½ [(μ(f_s) − f_t)² / σ² + log σ²]): the teacher's map as Gaussian about a prediction μ from the
    student's; the constant is left out.

    σ² = softplus(ρ) + ε, one trained ρ a channel; μ: three 1×1 convolutions with ReLU between. The larger
    map is pooled to the size of the smaller.
    """

    Options = VIDOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation for Knowledge Transfer. CVPR 2019"
    published = Published(resnet8x4=73.09, wrn_16_2=74.11, source="RepDistiller README, last epoch, 5 runs")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("vid", setup, "features", options.maps)
        channels = [(setup.student.features[i][0], setup.teacher.features[i][0]) for i in self.maps]
        self.regressors = nn.ModuleList(regressor(s, t) for s, t in channels)
        start = math.log(math.expm1(options.init_variance - options.epsilon))  # softplus of it is the rest
        self.log_scale = nn.ParameterList(torch.full((t,), start) for _, t in channels)

    def forward(self, student, teacher, batch, step):
        layers = zip(self.maps, self.regressors, self.log_scale)
        return sum(self.nll(student.features[i], teacher.features[i], mu, rho) for i, mu, rho in layers)

    def nll(self, f_s, f_t, mu, rho):
        f_s, f_t = same_size(f_s, f_t)
        variance = (F.softplus(rho) + self.options.epsilon)[:, None, None]
        return 0.5 * ((mu(f_s) - f_t) ** 2 / variance + variance.log()).mean()


def regressor(inputs, outputs):
    convs = [nn.Conv2d(width, outputs, 1, bias=False) for width in (inputs, outputs, outputs)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


@hookimpl
def kdray_distillers():
    return [DistillerSpec("vid", VID)]
