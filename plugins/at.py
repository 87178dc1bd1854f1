"""Attention transfer: the student looks where the teacher looks, at every stage."""

import torch.nn.functional as F
from pydantic import Field

from kdray import ConfigError, Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class ATOptions(Options):
    p: float = Field(2.0, ge=1, description="p: a position's attention is the mean over channels of |f|^p.")
    maps: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Which maps, 0 the stem's and −1 the last; without it all but the stem's, from the deep end.",
    )


class AT(Distiller):
    """Σ_maps mean((Q_s − Q_t)²) over samples and positions, Q = a map's attention as a vector of length 1.

    The larger map is pooled to the size of the smaller. The paper has β/2 times the norm of the difference (equation
    2); the authors' code and RepDistiller take the mean square, as here.
    """

    Options = ATOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Zagoruyko, Komodakis: Paying More Attention to Attention. ICLR 2017, arXiv 1612.03928"
    published = Published(resnet8x4=73.44, wrn_16_2=74.08, source="RepDistiller README, last epoch, 5 runs")

    def __init__(self, options, setup):
        super().__init__(options, setup)
        n = min(len(setup.student.features), len(setup.teacher.features))
        self.maps = options.maps or range(1 - n, 0)
        if not self.maps or not all(-n <= i < n for i in self.maps):
            raise ConfigError(f"at: maps {list(self.maps)}: the networks share {n}; choose −{n} to {n - 1} in `maps`.")

    def forward(self, student, teacher, batch, step):
        return sum(self.difference(student.features[i], teacher.features[i]) for i in self.maps)

    def difference(self, f_s, f_t):
        if f_s.shape[2:] != f_t.shape[2:]:
            size = [min(a, b) for a, b in zip(f_s.shape[2:], f_t.shape[2:])]
            f_s, f_t = F.adaptive_avg_pool2d(f_s, size), F.adaptive_avg_pool2d(f_t, size)
        return F.mse_loss(self.attention(f_s), self.attention(f_t))

    def attention(self, f):
        return F.normalize(f.abs().pow(self.options.p).mean(dim=1).flatten(1), dim=1)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("at", AT)]
