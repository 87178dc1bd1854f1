"""Knowledge review: each stage of the teacher teaches the student's stage and its deeper ones, fused."""

import torch
import torch.nn.functional as F
from torch import nn

from kdray import Distiller, DistillerSpec, Published, Requires, hookimpl, paired_maps


class ReviewKD(Distiller):
    """Σ_l HCL(ABF_l, T_l) over the stages and the embedding, which counts as a map of 1×1 (Chen et al.).

    S_l: the student's maps (C, H, W), T_l: the teacher's before their last ReLU. Going from deep to shallow, ABF fuses
    S_l with what it carries from the deeper stages and gives a map of T_l's shape; HCL compares the two. The published
    recipes warm the term up over 20 epochs: a matter of its weight in the config.

    Networks of different depth are paired from their last stage.
    """

    requires = Requires(student={"features", "embedding"}, teacher={"preactivations", "embedding"})
    paper = "Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review. CVPR 2021, arXiv 2104.09044"
    published = Published(resnet8x4=75.63, wrn_16_2=76.12, source="ITRD README")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("reviewkd", setup, "features", kind_t="preactivations")
        widths_s = [*(setup.student.features[i][0] for i in self.maps), *setup.student.embedding]
        widths_t = [*(setup.teacher.preactivations[i][0] for i in self.maps), *setup.teacher.embedding]
        middle = min(512, widths_s[-1])
        self.fusions = nn.ModuleList(  # deep to shallow; there is nothing deeper than the first to fuse it with
            ABF(s, middle, t, fuse=number > 0) for number, (s, t) in enumerate(zip(widths_s[::-1], widths_t[::-1]))
        )

    def forward(self, student, teacher, batch, step):
        maps_s = [*(student.features[i] for i in self.maps), student.embedding[:, :, None, None]]
        maps_t = [*(teacher.preactivations[i] for i in self.maps), teacher.embedding[:, :, None, None]]
        loss, carried = 0.0, None
        for fuse, s, t in zip(self.fusions, reversed(maps_s), reversed(maps_t)):
            answer, carried = fuse(s, carried, t.shape[2:])
            loss = loss + hcl(answer, t)
        return loss


class ABF(nn.Module):
    """Attention based fusion: x (C, H, W) and what is carried (middle, …), each times a map of its own, added up.

    The two maps in (0, 1) come from both of them by a 1×1 convolution and a sigmoid.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, fuse: bool):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attend = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        for convolution in (self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, x, carried, size):
        """The map to compare, with `outputs` channels, and the map to carry on, both of `size`."""
        x = self.enter(x)
        if self.attend is not None:
            carried = F.interpolate(carried, x.shape[2:], mode="nearest")
            attention = self.attend(torch.cat([x, carried], dim=1)).sigmoid()
            x = attention[:, :1] * x + attention[:, 1:] * carried
        x = F.interpolate(x, size, mode="nearest")
        return self.leave(x), x


def hcl(s, t):
    """Hierarchical context loss: the mean square of s − t, whole and pooled to 4×4, 2×2 and 1×1, averaged with weights
    1, 1/2, 1/4, 1/8. Of these sizes those below the map's own count; the weights follow one another without a gap."""
    loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for size in (4, 2, 1):
        if size < s.shape[2]:
            weight /= 2
            total += weight
            loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size))
    return loss / total


@hookimpl
def kdray_distillers():
    return [DistillerSpec("reviewkd", ReviewKD)]
