"""Flow of the solution procedure: before the main training, products of neighbouring maps follow the teacher's."""

from itertools import pairwise

import torch.nn.functional as F
from pydantic import Field

from kdray import (
    ConfigError,
    Distiller,
    DistillerSpec,
    Options,
    Published,
    Requires,
    Stage,
    hookimpl,
    paired_maps,
    same_size,
)


class FSPOptions(Options):
    init_epochs: int = Field(30, ge=1, description="Epochs of the first stage, which is all of the method.")
    maps: tuple[int, ...] | None = Field(
        None,
        min_length=2,
        description="Which maps, 0 the stem's and −1 the last, in order; without it all, from the deep end.",
    )


class FSP(Distiller):
    """Stage `init`: Σ mean((G_s − G_t)²) over neighbouring maps, G (C, C′) the mean over positions of f ⊗ f′;
    the larger of the two maps is pooled to the size of the smaller.

    The networks' maps need the same numbers of channels. The main loop has no term: there only the other losses train,
    and the weight has no effect. Means instead of the paper's sums, as in RepDistiller.
    """

    Options = FSPOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = (
        "Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer "
        "Learning. CVPR 2017"
    )
    published = Published(resnet8x4=72.62, wrn_16_2=72.91, source="RepDistiller README, last epoch, 5 runs")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("fsp", setup, "features", options.maps, first=0, least=2)
        C_s, C_t = ([side.features[i][0] for i in self.maps] for side in (setup.student, setup.teacher))
        if C_s != C_t:
            raise ConfigError(
                f"fsp: the student's maps have {C_s} channels, the teacher's {C_t}; the method needs the same. Choose "
                "networks of one width, or those `maps` that agree."
            )

    def stages(self):
        return [Stage("init", self.options.init_epochs, self.flow, student=True)]

    def flow(self, student, teacher, batch, step):
        pairs = pairwise(self.maps)
        return sum(
            F.mse_loss(*(gram(side.features[i], side.features[j]) for side in (student, teacher))) for i, j in pairs
        )

    def forward(self, student, teacher, batch, step):
        return {}


def gram(f, g):
    """(B, C, H, W) and (B, C′, H′, W′) to (B, C, C′)."""
    f, g = (x.flatten(2) for x in same_size(f, g))
    return f @ g.mT / f.shape[2]


@hookimpl
def kdray_distillers():
    return [DistillerSpec("fsp", FSP)]
