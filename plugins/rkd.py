"""Relational distillation: distances between pairs and angles in triplets of embeddings follow the teacher's."""

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, SearchSpaceSpec, hookimpl


class RKDOptions(Options):
    distance: float = Field(25.0, ge=0, description="Factor of the term of distances.")
    angle: float = Field(50.0, ge=0, description="Factor of the term of angles.")


class RKD(Distiller):
    """distance · mean_ij ℓ(d_ij / mean d) + angle · mean_ijk ℓ(cos ∠ jik), ℓ the Huber loss of student against teacher
    over all pairs and triplets of the global batch.

    Everything comes from the inner products ⟨e_i, e_j⟩: ⟨e_j − e_i, e_k − e_i⟩ = G_jk − G_ij − G_ik + G_ii.
    """

    Options = RKDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = "Park, Kim, Lu, Cho: Relational Knowledge Distillation. CVPR 2019, arXiv 1904.05068"
    published = Published(resnet8x4=71.90, wrn_16_2=73.35, source="RepDistiller README, last epoch, 5 runs")
    scope = "batch"
    scheduled = frozenset({"distance", "angle"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        rows = slice(batch.offset, batch.offset + len(batch.index))  # of the triplets those whose vertex i is our own
        d_s, angle_s = relations(step.gather(student.embedding, differentiable=True), rows)
        d_t, angle_t = relations(step.gather(teacher.embedding), rows)
        return {
            "distance": self.options.distance * F.smooth_l1_loss(d_s, d_t),
            "angle": self.options.angle * F.smooth_l1_loss(angle_s, angle_t),
        }


def relations(e, rows):
    """Distances of all pairs over their mean (B, B), and the cosines at the vertices `rows` (b, B, B)."""
    e = e - e.mean(dim=0)  # changes no difference, and keeps them exact where the embeddings lie far from 0
    G = e @ e.T
    square = G.diagonal()
    scale = square[:, None] + square
    d2 = scale - 2 * G
    apart = d2.detach() > 8 * torch.finfo(e.dtype).eps * scale.detach()  # below it the difference is rounding
    apart = apart & ~torch.eye(len(e), dtype=torch.bool, device=e.device)
    d = torch.where(apart, d2, 1).sqrt()  # no root of 0, whose gradient is infinite
    unit = apart / d  # 1/d, and 0 where there is no direction: the cosine is then 0
    at = G[None] - G[rows, :, None] - G[rows, None, :] + square[rows, None, None]
    cosine = at * unit[rows, :, None] * unit[rows, None, :]
    d = d * apart
    mean = d.sum() / apart.sum().clamp(min=1)
    return d / torch.where(mean > 0, mean, 1), cosine


@hookimpl
def kdray_distillers():
    return [DistillerSpec("rkd", RKD)]


@hookimpl
def kdray_search_spaces():
    return [SearchSpaceSpec("rkd", {"distance": {"loguniform": [2.5, 250.0]}, "angle": {"loguniform": [5.0, 500.0]}})]
