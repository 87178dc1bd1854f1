"""Contrastive representation distillation, with a choice of positives, negatives and objective."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import (
    AllOptions,
    BankOptions,
    BatchOptions,
    Distiller,
    DistillerSpec,
    Options,
    Published,
    QueueOptions,
    Requires,
    SearchSpaceSpec,
    SharedOptions,
    Slow,
    hookimpl,
    infonce,
    nce,
    negative_pool,
    partition,
)


class CRDOptions(Options):
    dim: int = Field(128, gt=0, description="d: length of the embeddings that are compared.")
    temperature: float = Field(0.07, gt=0, description="τ: inner products are divided by it.")
    negatives: BankOptions | SharedOptions | AllOptions | QueueOptions | BatchOptions = Field(
        BankOptions(),
        discriminator="kind",
        description="Where negatives come from: a draw from a bank of all samples for each anchor (`bank`), one for "
        "the whole batch (`shared`), all of that bank, a queue of the last ones, or the batch.",
    )
    positives: Literal["own", "class"] = Field(
        "own",
        description="own: the other network's embedding of the same sample. class: all embeddings of its class among "
        "those that `negatives` names; the loss is the mean over them, outside of the logarithm.",
    )
    objective: str = Field(
        "nce",
        pattern="^(nce|infonce)$",
        description="`nce`: the paper's binary critic. `infonce`: softmax of the positive among the negatives.",
    )
    slow: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="m: anchors meet embeddings of slow copies of the two heads, which move as m · old + (1 − m) · new "
        "at each step (0.999 in MoCo). 0: of the heads themselves.",
    )


class CRD(Distiller):
    """Teacher's and student's embeddings of one picture attract, of two classes repel.

    Tian et al., equations 14, 17 to 19: each network's embedding as the anchor against the other's, summed.

    With `bank` and `nce` it is the published method, banks and normalising constants included: the positive is read
    from the bank before the step's update, and Z is fixed from the first global batch. `all` takes the same loss
    without its draw. Published variants with a queue or the batch let all other samples repel, also those of the
    anchor's class: that is `objective: infonce` and `negatives: {other: sample}`. With `slow` heads and a `queue` it is
    near to CoCoRD (Fu, Yang, Yang 2023), whose slow student is a copy of the whole network.
    """

    Options = CRDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = "Tian, Krishnan, Isola: Contrastive Representation Distillation. ICLR 2020, arXiv 1910.10699"
    published = Published(resnet8x4=75.51, wrn_16_2=75.48, source="RepDistiller README, last epoch, 5 runs")
    scope = "batch"
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.embed_s = nn.Linear(setup.student.embedding[0], options.dim)
        self.embed_t = nn.Linear(setup.teacher.embedding[0], options.dim)
        self.slow_s = Slow(self.embed_s, options.slow) if options.slow else None
        self.slow_t = Slow(self.embed_t, options.slow) if options.slow else None
        self.contrast = negative_pool(options.negatives, options.dim, setup, options.positives)
        self.num_samples = setup.num_samples
        # Z of the student's and the teacher's scores, 0 until it is fixed.
        self.register_buffer("z_s", torch.zeros(()))
        self.register_buffer("z_t", torch.zeros(()))
        self._fixed = set()

    def prepare(self, teacher, batch, step):
        g_t = F.normalize(self.embed_t(teacher.embedding), dim=1)
        ahead = self.contrast.ahead(g_t, batch, step)
        return g_t, ahead, self.objective(ahead[-1], "z_t", step) if ahead else None

    def forward(self, student, teacher, batch, step):
        g_t, ahead, loss_t = self.prepared or self.prepare(teacher, batch, step)
        g_s = F.normalize(self.embed_s(student.embedding), dim=1)
        keys = None
        if self.slow_s:
            k_s, k_t = self.slow_s(self.embed_s, student.embedding), self.slow_t(self.embed_t, teacher.embedding)
            keys = F.normalize(k_s, dim=1), F.normalize(k_t, dim=1)
        anchor_s, anchor_t = self.contrast(g_s, g_t, batch, step, keys, ahead)
        if loss_t is None:
            loss_t = self.objective(anchor_t, "z_t", step)
        return self.objective(anchor_s, "z_s", step) + loss_t

    def after_backward(self, batch, step):
        self.contrast.update(batch, step)

    def objective(self, scores, name, step):
        tau, z = self.options.temperature, getattr(self, name)
        if self.options.objective == "infonce":
            return infonce(scores, tau)
        if name not in self._fixed:  # asked of the tensor once, not at every step: it may lie on a GPU
            if z == 0:
                z.copy_(partition(scores, tau, self.num_samples, step))
            self._fixed.add(name)
        return nce(scores, tau, z, self.num_samples)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("crd", CRD)]


@hookimpl
def kdray_search_spaces():
    return [SearchSpaceSpec("crd", {"temperature": {"loguniform": [0.03, 0.3]}, "weight": {"loguniform": [0.05, 2.0]}})]
