"""Discriminative and consistent representation distillation."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class DCDOptions(Options):
    dim: int = Field(128, gt=0, description="d: length of the embeddings that are compared.")
    alpha: float = Field(0.5, ge=0, description="Weight of the consistency beside the contrast.")
    scale: float = Field(math.e, gt=0, description="Inner products are multiplied by it; learned from this value on.")
    max_scale: float = Field(10.0, gt=0, description="The learned scale is not used beyond it.")


class DCD(Distiller):
    """In-batch contrast of embeddings with a learned scale, and agreement of its two directions.

    With S_ij = exp(θ) g_s,i · g_t,j over the global batch, p = softmax of S over teachers j and q = softmax over
    students i: −log p_ii, and α · KL(q of teacher i ‖ p of student i), each mean over i. Gradients flow through both.

    The published code also learns a bias that it adds to all of S: no softmax sees it, so it is not here.
    """

    Options = DCDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = "Giakoumoglou, Stathaki: Discriminative and Consistent Representation Distillation. 2024, arXiv 2407.11802"
    published = Published(
        resnet8x4=74.23, wrn_16_2=74.99, source="README of giakoumoglou/distillers, November 2024, since taken away"
    )
    scope = "batch"
    scheduled = frozenset({"alpha"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.embed_s = nn.Linear(setup.student.embedding[0], options.dim)
        self.embed_t = nn.Linear(setup.teacher.embedding[0], options.dim)
        self.theta = nn.Parameter(torch.tensor(math.log(options.scale)))

    def forward(self, student, teacher, batch, step):
        g_s = F.normalize(self.embed_s(student.embedding), dim=1)
        g_t = F.normalize(self.embed_t(teacher.embedding), dim=1)
        scale = self.theta.exp().clamp(max=self.options.max_scale)
        log_p = F.log_softmax(scale * g_s @ step.gather(g_t, differentiable=True).T, dim=1)  # (b, B)
        log_q = F.log_softmax(scale * g_t @ step.gather(g_s, differentiable=True).T, dim=1)
        own = batch.offset + torch.arange(len(g_s), device=g_s.device)
        consistency = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        return {"contrast": F.nll_loss(log_p, own), "consistency": self.options.alpha * consistency}


@hookimpl
def kdray_distillers():
    return [DistillerSpec("dcd", DCD)]
