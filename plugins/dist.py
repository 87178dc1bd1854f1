"""DIST: the student's probabilities correlate with the teacher's, within each sample and within each class."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, SearchSpaceSpec, hookimpl


class DISTOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T: both logits are divided by it before the softmax.")
    beta: float = Field(1.0, ge=0, description="β: weight of the correlation over the classes of a sample (inter).")
    gamma: float = Field(1.0, ge=0, description="γ: weight of the correlation over the samples of a class (intra).")


class DIST(Distiller):
    """T² · (β · mean over samples of 1 − ρ(row of Y_s, row of Y_t) + γ · mean over classes of 1 − ρ(column, column)).

    Y = softmax(z / T), (B, C), ρ is Pearson's correlation; terms `inter` (between the classes) and `intra` (within a
    class). Columns reach over the global batch. T = 4 is that of CIFAR-100; on ImageNet it is 1.
    """

    Options = DISTOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = "Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022, arXiv 2205.10536"
    published = Published(
        resnet8x4=76.31, wrn_16_2=75.51, source="README of hunto/DIST_KD; WRN: README of zkxufo/TTM, 5 runs"
    )
    scope = "batch"
    scheduled = frozenset({"temperature", "beta", "gamma"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        y_s, y_t = F.softmax(student.logits / T, dim=1), F.softmax(teacher.logits / T, dim=1)
        all_s, all_t = step.gather(y_s, differentiable=True), step.gather(y_t)
        return {
            "inter": self.options.beta * T**2 * (1 - correlation(y_s, y_t, dim=1)).mean(),
            "intra": self.options.gamma * T**2 * (1 - correlation(all_s, all_t, dim=0)).mean(),
        }


def correlation(a, b, dim):
    a, b = a - a.mean(dim=dim, keepdim=True), b - b.mean(dim=dim, keepdim=True)
    return (a * b).sum(dim=dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("dist", DIST)]


@hookimpl
def kdray_search_spaces():
    return [SearchSpaceSpec("dist", {"beta": {"loguniform": [0.2, 5.0]}, "gamma": {"loguniform": [0.2, 5.0]}})]
