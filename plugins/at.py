"""Attention transfer: the student looks where the teacher looks, at every stage."""

import torch.nn.functional as F
from pydantic import Field

from kdray import (
    Distiller,
    DistillerSpec,
    MapChoice,
    Options,
    Published,
    Requires,
    SearchSpaceSpec,
    hookimpl,
    paired_maps,
    same_size,
)


class ATOptions(Options):
    p: float = Field(2.0, ge=1, description="p: a position's attention is the mean over channels of |f|^p.")
    maps: MapChoice = None


class AT(Distiller):
    """Σ_maps mean((Q_s − Q_t)²) over samples and positions, Q = a map's attention as a vector of length 1.

    The larger map is pooled to the size of the smaller. The paper has β/2 times the norm of the difference (equation
    2); the authors' code and RepDistiller take the mean square, as here.
    """

    Options = ATOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Zagoruyko, Komodakis: Paying More Attention to Attention. ICLR 2017, arXiv 1612.03928"
    published = Published(resnet8x4=73.44, wrn_16_2=74.08, source="RepDistiller README, last epoch, 5 runs")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("at", setup, "features", options.maps)

    def forward(self, student, teacher, batch, step):
        return sum(self.difference(student.features[i], teacher.features[i]) for i in self.maps)

    def difference(self, f_s, f_t):
        f_s, f_t = same_size(f_s, f_t)
        return F.mse_loss(self.attention(f_s), self.attention(f_t))

    def attention(self, f):
        return F.normalize(f.abs().pow(self.options.p).mean(dim=1).flatten(1), dim=1)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("at", AT)]


@hookimpl
def kdray_search_spaces():
    return [SearchSpaceSpec("at", {"weight": {"loguniform": [100.0, 10000.0]}})]
