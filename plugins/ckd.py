"""Contrastive distillation of logits, sample by sample."""

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class CKDOptions(Options):
    temperature: float = Field(1.0, gt=0, description="τ: cosines are divided by it.")


class CKD(Distiller):
    """The teacher's logits of a sample single out the student's of that sample among the batch's.

    −log softmax(cos(z_t,i, z_s,j) / τ over students j)_i, mean over the global batch; z are logits (B, num_classes).
    All other samples of the batch repel, also those of the same class. Being bounded cosines of τ = 1, they want a
    large weight: the published configs give 10 to 100.
    """

    Options = CKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = (
        "Zhu, Zhou, Zhu, Wang, Hu: CKD: Contrastive Knowledge Distillation from A Sample-Wise Perspective. 2024, "
        "arXiv 2404.14109"
    )
    scope = "batch"
    scheduled = frozenset({"temperature"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        every_s = step.gather(F.normalize(student.logits, dim=1), differentiable=True)
        cosines = F.normalize(teacher.logits.detach(), dim=1) @ every_s.T  # (b, B)
        own = batch.offset + torch.arange(len(cosines), device=cosines.device)
        return F.cross_entropy(cosines / self.options.temperature, own)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ckd", CKD)]
