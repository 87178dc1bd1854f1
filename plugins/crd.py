"""Contrastive representation distillation: teacher's and student's embeddings of one picture attract, of two classes
repel."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import (
    BankOptions,
    BatchOptions,
    Distiller,
    DistillerSpec,
    Options,
    QueueOptions,
    Requires,
    hookimpl,
    negative_pool,
)


class CRDOptions(Options):
    dim: int = Field(128, gt=0, description="d: length of the embeddings that are compared.")
    temperature: float = Field(0.07, gt=0, description="τ: inner products are divided by it.")
    negatives: BankOptions | QueueOptions | BatchOptions = Field(
        BankOptions(),
        discriminator="kind",
        description="Where negatives come from: a bank of all samples, a queue of the last ones, or the batch.",
    )
    objective: str = Field(
        "nce",
        pattern="^(nce|infonce)$",
        description="`nce`: the paper's binary critic. `infonce`: softmax of the positive among the negatives.",
    )


class CRD(Distiller):
    """Tian et al., equations 14, 17 to 19: each network's embedding as the anchor against the other's, summed.

    With `bank` and `nce` it is the published method, banks and normalising constants included: the positive is read
    from the bank before the step's update, and Z is fixed from the first global batch.
    """

    Options = CRDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = "Tian, Krishnan, Isola: Contrastive Representation Distillation. ICLR 2020, arXiv 1910.10699"

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.embed_s = nn.Linear(setup.student.embedding[0], options.dim)
        self.embed_t = nn.Linear(setup.teacher.embedding[0], options.dim)
        self.contrast = negative_pool(options.negatives, options.dim, setup)
        self.num_samples = setup.num_samples
        # Z of the student's and the teacher's scores, 0 until it is fixed.
        self.register_buffer("z_s", torch.zeros(()))
        self.register_buffer("z_t", torch.zeros(()))
        self._fixed = set()

    def forward(self, student, teacher, batch, step):
        g_s = F.normalize(self.embed_s(student.embedding), dim=1)
        g_t = F.normalize(self.embed_t(teacher.embedding), dim=1)
        anchor_s, anchor_t = self.contrast(g_s, g_t, batch, step)
        critic = self.nce if self.options.objective == "nce" else self.infonce
        return critic(anchor_s, "z_s", step) + critic(anchor_t, "z_t", step)

    def after_backward(self, batch, step):
        self.contrast.update(batch, step)

    def infonce(self, scores, z, step):
        """−log of the positive's share in the softmax over itself and the negatives."""
        negative = scores.negative if scores.valid is None else scores.negative.masked_fill(~scores.valid, -torch.inf)
        logits = torch.cat([scores.positive[:, None], negative], dim=1) / self.options.temperature
        return -F.log_softmax(logits, dim=1)[:, 0].mean()

    def nce(self, scores, z, step):
        """Equation 18: −E[log h(positive)] − M · E[log(1 − h(negative))]."""
        positive = (scores.positive / self.options.temperature).exp()
        negative = (scores.negative / self.options.temperature).exp()
        valid = scores.valid
        count = (
            torch.full_like(positive, negative.shape[1]) if valid is None else valid.sum(dim=1).to(positive)
        )  # M, a row
        Z = self.constant(z, positive, negative, valid, count, step)
        c, eps = (count / self.num_samples)[:, None], 1e-7  # M / N
        positive, negative = positive / Z, negative / Z
        log_h = (positive / (positive + c[:, 0] + eps)).log()  # equation 19
        not_h = c / (negative + c + eps)
        if valid is not None:  # before the logarithm: in a row without negatives it is log 0, whose gradient is NaN
            not_h = not_h.masked_fill(~valid, 1)
        return -(log_h + not_h.log().sum(dim=1)).mean()

    @torch.no_grad()
    def constant(self, name, positive, negative, valid, count, step):
        """Z makes the scores a distribution over the N samples: their mean over the first global batch, times N."""
        z = getattr(self, name)
        if name not in self._fixed:  # asked of the tensor once, not at every step: it may lie on a GPU
            if z == 0:
                negative = negative if valid is None else negative.masked_fill(~valid, 0)
                total, number = step.gather(positive + negative.sum(dim=1)).sum(), step.gather(count + 1).sum()
                z.copy_(total / number * self.num_samples)
            self._fixed.add(name)
        return z


@hookimpl
def kdray_distillers():
    return [DistillerSpec("crd", CRD)]
