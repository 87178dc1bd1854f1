"""MGD: from its own last map with holes in it, the student generates the teacher's whole one."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl, last_maps, same_size


class MGDOptions(Options):
    masked: float = Field(0.15, ge=0, lt=1, description="λ: probability that a channel (or position) is masked.")
    mask: Literal["channels", "positions"] = Field(
        "channels",
        description="What is masked: whole channels, as the authors do for classification, or positions, as for "
        "detection.",
    )


class MGD(Distiller):
    """Σ over (D_t, H, W) of (G(M · A(S)) − T)², mean over the batch (Yang et al.).

    S, T: last maps of student and teacher. A: a 1×1 convolution to the teacher's channels, where the student has other
    ones. M: 0 or 1 for each sample and channel (or position), drawn at each step. G: convolution 3×3, ReLU, convolution
    3×3. The larger of S and T is average-pooled to the size of the smaller.
    """

    Options = MGDOptions
    requires = Requires(student={"last_map"}, teacher={"last_map"})
    paper = "Yang, Li, Shao, Shi, Yuan, Yuan: Masked Generative Distillation. ECCV 2022, arXiv 2205.01529"
    scheduled = frozenset({"masked"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shape_s, shape_t = last_maps("mgd", student=setup.student, teacher=setup.teacher)
        width = shape_t[0]
        self.align = nn.Conv2d(shape_s[0], width, 1) if shape_s[0] != width else nn.Identity()
        self.generate = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, student, teacher, batch, step):
        s, t = same_size(student.last_map, teacher.last_map)
        s = self.align(s)
        whole = (batch.size, s.shape[1], 1, 1) if self.options.mask == "channels" else (batch.size, 1, *s.shape[2:])
        generator = step.device_generator
        drawn = torch.rand(whole, generator=generator, device=generator.device)[batch.offset : batch.offset + len(s)]
        kept = (drawn >= self.options.masked).to(s)
        return F.mse_loss(self.generate(kept * s), t, reduction="sum") / len(s)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("mgd", MGD)]
