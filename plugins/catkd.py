"""CAT-KD: class activation maps, which show where a network sees each class, go over to the student."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl, last_maps


class CATKDOptions(Options):
    resolution: int = Field(2, ge=1, description="Maps are pooled to resolution × resolution.")
    normalise: bool = Field(
        False,
        description="Each class's pooled map gets length 1; at resolution 1 only its sign would be left.",
    )


class CATKD(Distiller):
    """Mean over classes, positions and batch of (φ(A_s) − φ(A_t))² (Guo et al.).

    A_c = Σ_k w_ck F_k, the activation map (H, W) of class c: the last map F (D, H, W) weighted by the row of class c in
    the classifier, whose bias is left out. φ: average pooling, then length 1 with `normalise`. The gradient reaches the
    student's classifier too.

    The authors' configs normalise, with a far larger weight, for some pairs of networks and not for others. Their
    networks have classifiers without bias.
    """

    Options = CATKDOptions
    requires = Requires(student={"last_map", "head"}, teacher={"last_map", "head"})
    paper = "Guo, Yan, Li, Lin: Class Attention Transfer Based Knowledge Distillation. CVPR 2023, arXiv 2304.12777"
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        last_maps("catkd", student=setup.student, teacher=setup.teacher)

    def forward(self, student, teacher, batch, step):
        return F.mse_loss(self.activation(student), self.activation(teacher).detach())

    def activation(self, outputs):
        """(B, num_classes, resolution, resolution). Pooling and weighting may change places."""
        pooled = F.adaptive_avg_pool2d(outputs.last_map, self.options.resolution)
        maps = F.conv2d(pooled, outputs.head[0][:, :, None, None])
        return F.normalize(maps, dim=(2, 3)) if self.options.normalise else maps


@hookimpl
def kdray_distillers():
    return [DistillerSpec("catkd", CATKD)]
