"""SEED: similarities to a queue of teacher embeddings."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, Ring, hookimpl


class SEEDOptions(Options):
    count: int = Field(65536, gt=0, description="K: length of the queue of teacher embeddings.")
    temperature_t: float = Field(0.01, gt=0, description="τ of the teacher's similarities.")
    temperature_s: float = Field(0.2, gt=0, description="τ of the student's similarities.")


class SEED(Distiller):
    """The student's similarities to a queue of the teacher's embeddings follow the teacher's own.

    H(softmax(z_t · D / τ_t), softmax(z_s · D / τ_s)), a cross-entropy, mean over the batch, where D is the queue and
    z_t, the sample's own teacher embedding; all have length 1. The queue is written after it was scored.

    The student reaches the teacher's space by two layers with a ReLU, as in the published code. That code's default is
    τ_t = 1e-4, which leaves the sample's own embedding alone in the target; the paper's 0.01 is ours.
    """

    Options = SEEDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = (
        "Fang, Wang, Wang, Zhang, Yang, Liu: SEED: Self-supervised Distillation for Visual Representation. ICLR 2021, "
        "arXiv 2101.04731"
    )
    scope = "batch"
    scheduled = frozenset({"temperature_t", "temperature_s"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        wide, dim = setup.student.embedding[0], setup.teacher.embedding[0]
        self.embed_s = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, dim))
        self.queue = Ring(options.count, setup.generator, teacher=dim)

    def forward(self, student, teacher, batch, step):
        z_s = F.normalize(self.embed_s(student.embedding), dim=1)
        self.fresh = z_t = F.normalize(teacher.embedding.detach(), dim=1)
        D = self.queue.teacher.to(z_t.dtype)

        def similarities(z):
            return torch.cat([(z * z_t).sum(dim=1, keepdim=True), z @ D.T], dim=1)  # (b, 1 + K)

        p_t = (similarities(z_t) / self.options.temperature_t).softmax(dim=1)
        return F.cross_entropy(similarities(z_s) / self.options.temperature_s, p_t)

    def after_backward(self, batch, step):
        self.queue.push(step, teacher=self.fresh)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("seed", SEED)]
