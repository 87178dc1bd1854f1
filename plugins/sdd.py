"""Scale-decoupled distillation: logits of the regions of the last map, each distilled on its own."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import ConfigError, Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class SDDOptions(Options):
    base: Literal["kd", "dkd", "nkd"] = Field("kd", description="What is asked of the logits of each region.")
    scales: list[int] = Field(
        [1, 2], min_length=1, description="M: the last map is divided into m × m regions, for each m."
    )
    complementary: float = Field(
        2.0,
        ge=0,
        description="β: weight of regions where the teacher is right and it is wrong on the whole, or the "
        "other way round; that of the others is 1.",
    )
    temperature: float = Field(4.0, gt=0, description="T.")
    target: float = Field(1.0, ge=0, description="Weight of the target class's part; dkd and nkd have one.")
    others: float = Field(8.0, ge=0, description="Weight of the other classes' part: 8 is dkd's, 1.5 is nkd's.")


class SDD(Distiller):
    """KD, DKD or NKD of the logits of regions, with more weight where a region contradicts the whole.

    The base loss of each of Σ m² regions' logits, times β where the region contradicts the whole; mean over regions
    and samples.

    A region's logits are the head's answer to the mean of the last map over it: exactly the mean of the logits of its
    positions. It contradicts the whole where the teacher's classes for it and for the whole picture are not both right
    or both wrong. kd: T² · KL. dkd and nkd: as the methods of these names.

    The published code pools maps smaller than 4 × 4 to 4 × 4, repeating positions; here the scale has to fit. Its `nkd`
    leaves the target class among the others, which is not the definition of NKD.
    """

    Options = SDDOptions
    requires = Requires(student={"last_map", "head"}, teacher={"logits", "last_map", "head"})
    paper = "Wei, Luo, Luo: Scale Decoupled Distillation. CVPR 2024, arXiv 2403.13512"
    published = Published(resnet8x4=76.63, source="the paper's text: SD-KD, M = {1, 2}")
    scheduled = frozenset({"complementary", "temperature"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        for side in ("student", "teacher"):
            _, *size = getattr(setup, side).last_map
            if max(options.scales) > min(size) or min(options.scales) < 1:
                raise ConfigError(
                    f"sdd: scales {options.scales} do not divide the {side}'s last map of {size[0]}×{size[1]}: each "
                    f"must be from 1 to {min(size)}"
                )

    def forward(self, student, teacher, batch, step):
        y = batch.target
        right = teacher.logits.argmax(dim=1) == y
        losses = []
        for m in self.options.scales:
            z_s, z_t = self.regions(student, m), self.regions(teacher, m)
            of = torch.arange(len(y), device=y.device).repeat_interleave(m * m)  # the picture of each region
            contradicts = (z_t.argmax(dim=1) == y[of]) != right[of]
            weight = torch.where(contradicts, self.options.complementary, 1.0).to(z_s.dtype)
            losses.append((weight * self.loss(z_s, z_t, y[of])).view(len(y), -1))
        return torch.cat(losses, dim=1).mean()

    def regions(self, outputs, m):
        """Logits (B · m², C)."""
        pooled = F.adaptive_avg_pool2d(outputs.last_map, m).flatten(2).transpose(1, 2)  # (B, m², D)
        return F.linear(pooled, *outputs.head).flatten(0, 1)

    def loss(self, z_s, z_t, y):
        """(n,), one a region."""
        o, T, y = self.options, self.options.temperature, y[:, None]
        if o.base == "kd":
            return T**2 * divergence(z_s / T, z_t / T)
        C = z_s.shape[1]
        others = (y + torch.arange(1, C, device=y.device)) % C  # all classes but y
        u_s, u_t = z_s.gather(1, others) / T, z_t.gather(1, others) / T
        if o.base == "dkd":
            b_s, b_t = (
                torch.cat([z.gather(1, y) / T, u.logsumexp(dim=1, keepdim=True)], dim=1)
                for z, u in ((z_s, u_s), (z_t, u_t))
            )
            return T**2 * (o.target * divergence(b_s, b_t) + o.others * divergence(u_s, u_t))
        target = -(F.softmax(z_t, dim=1) * F.log_softmax(z_s, dim=1)).gather(1, y)[:, 0]
        return o.target * target + o.others * T**2 * F.cross_entropy(u_s, F.softmax(u_t, dim=1), reduction="none")


def divergence(z_s, z_t):
    """KL(softmax(z_t) ‖ softmax(z_s)) of each row."""
    return F.kl_div(F.log_softmax(z_s, dim=1), F.log_softmax(z_t, dim=1), reduction="none", log_target=True).sum(dim=1)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("sdd", SDD)]
