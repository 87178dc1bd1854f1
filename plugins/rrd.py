"""Relational representation distillation."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, Ring, hookimpl


class RRDOptions(Options):
    dim: int = Field(128, gt=0, description="d: length of the compared embeddings, where the teacher is projected.")
    count: int = Field(16384, gt=0, description="K: length of the memory.")
    temperature_t: float = Field(0.02, gt=0, description="τ of the teacher's similarities.")
    temperature_s: float = Field(0.1, gt=0, description="τ of the student's similarities.")
    teacher_head: Literal["random", "none"] = Field(
        "random",
        description="random: the teacher's embedding is projected to `dim` by a linear layer that stays as it was "
        "drawn. none: it is taken as it is, and the student is projected to its length.",
    )


class RRD(Distiller):
    """The student's similarities to a memory of teacher embeddings follow the teacher's, each at its temperature.

    H(softmax(z_t · Q / τ_t), softmax(z_s · Q / τ_s)), a cross-entropy, mean over the batch; Q are the last K teacher
    embeddings, those of this global batch included, and all vectors have length 1.

    The published code registers its teacher projection for training, yet no gradient reaches it: it stays the random
    one it began as. Q begins as random unit vectors; there, its columns have length 1 instead of its rows. The
    temperatures are the defaults of that code's last revision; an earlier one had τ_t = 0.1 and τ_s = 0.04.
    """

    Options = RRDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = "Giakoumoglou, Stathaki: Relational Representation Distillation. 2024, arXiv 2407.12073"
    published = Published(
        resnet8x4=74.48, wrn_16_2=75.33, source="README of giakoumoglou/distillers, November 2024, since taken away"
    )
    scope = "batch"
    scheduled = frozenset({"temperature_t", "temperature_s"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        wide, wide_t = setup.student.embedding[0], setup.teacher.embedding[0]
        random = options.teacher_head == "random"
        dim = options.dim if random else wide_t
        self.embed_s = nn.Linear(wide, dim)
        self.embed_t = nn.Linear(wide_t, dim).requires_grad_(False) if random else nn.Identity()
        self.memory = Ring(options.count, setup.generator, teacher=dim)

    def forward(self, student, teacher, batch, step):
        z_s = F.normalize(self.embed_s(student.embedding), dim=1)
        with torch.no_grad():
            z_t = F.normalize(self.embed_t(teacher.embedding), dim=1)
            self.memory.push(step, teacher=z_t)
        Q = self.memory.teacher.to(z_t.dtype)
        p_t = (z_t @ Q.T / self.options.temperature_t).softmax(dim=1)
        return F.cross_entropy(z_s @ Q.T / self.options.temperature_s, p_t)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("rrd", RRD)]
