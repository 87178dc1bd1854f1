"""PEFD: several projectors together bring the student's embedding to the direction of the teacher's."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class PEFDOptions(Options):
    projectors: int = Field(3, ge=1, description="q: how many projectors are averaged.")


class PEFD(Distiller):
    """1 − cos(mean_k ReLU(W_k s + b_k), t), mean over the batch (Chen et al.).

    s, t: embeddings (D_s) and (D_t); W_k, b_k: the q projectors, which differ by their initial weights.
    """

    Options = PEFDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = (
        "Chen, Wang, Liu, Xu, de Hoog, Huang: Improved Feature Distillation via Projector Ensemble. NeurIPS 2022, "
        "arXiv 2210.15274"
    )
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        (width_s,), (width_t,) = setup.student.embedding, setup.teacher.embedding
        self.projectors = nn.ModuleList(nn.Linear(width_s, width_t) for _ in range(options.projectors))

    def forward(self, student, teacher, batch, step):
        s = torch.stack([project(student.embedding).relu() for project in self.projectors]).mean(dim=0)
        return (1 - F.cosine_similarity(s, teacher.embedding, dim=1)).mean()


@hookimpl
def kdray_distillers():
    return [DistillerSpec("pefd", PEFD)]
