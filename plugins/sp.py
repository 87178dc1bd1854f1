"""Similarity-preserving distillation: samples that are alike to the teacher are alike to the student."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl, paired_maps


class SPOptions(Options):
    maps: tuple[int, ...] = Field(
        (-1,), min_length=1, description="Which maps, 0 the stem's and −1 the last; their losses are summed."
    )


class SP(Distiller):
    """‖G_t − G_s‖²_F / B², G = F Fᵀ with rows of length 1, F (B, C · H · W) the maps of the global batch.

    G is B × B: the two networks' maps may differ in every size. The last map alone is RepDistiller's script.
    """

    Options = SPOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Tung, Mori: Similarity-Preserving Knowledge Distillation. ICCV 2019, arXiv 1907.09682"
    published = Published(resnet8x4=72.94, wrn_16_2=73.83, source="RepDistiller README, last epoch, 5 runs")
    scope = "batch"
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("sp", setup, "features", options.maps, spatial=False)

    def forward(self, student, teacher, batch, step):
        loss = 0
        for i in self.maps:
            F_s = step.gather(student.features[i].flatten(1), differentiable=True)
            F_t = step.gather(teacher.features[i].flatten(1))
            loss = loss + F.mse_loss(F.normalize(F_s @ F_s.T, dim=1), F.normalize(F_t @ F_t.T, dim=1))
        return loss


@hookimpl
def kdray_distillers():
    return [DistillerSpec("sp", SP)]
