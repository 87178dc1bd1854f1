"""SRD, a simple recipe: a linear projector, embeddings standardised over the batch, the logarithm of their distance."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class SRDOptions(Options):
    exponent: float = Field(4.0, ge=1, description="α: power of the differences.")
    feature: float = Field(2.0, ge=0, description="Factor of the feature term.")
    temperature: float = Field(1.0, gt=0, description="T of the logit term.")


class SRD(Distiller):
    """Two terms (Miles and Mikolajczyk). `feature`: 2 · log Σ_{i,d} |BN(W s + b)_id − BN(t)_id|^α over the embeddings
    of the global batch. `kd`: T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)).

    BN standardises each entry over the batch, of the teacher's embedding too, without learned scale or shift. The sum
    runs over samples and entries; their number only adds a constant to the logarithm. A batch of one sample
    standardises to 0 on both sides: its term is a constant instead of −∞.

    The power and the factors are those of the authors' ImageNet code.
    """

    Options = SRDOptions
    requires = Requires(student={"embedding", "logits"}, teacher={"embedding", "logits"})
    paper = (
        "Miles, Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation. AAAI 2024, "
        "arXiv 2303.11098"
    )
    scope = "batch"
    scheduled = frozenset({"exponent", "feature", "temperature"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.projector = nn.Linear(setup.student.embedding[0], setup.teacher.embedding[0])

    def forward(self, student, teacher, batch, step):
        s = standardised(step.gather(self.projector(student.embedding), differentiable=True))
        t = standardised(step.gather(teacher.embedding))
        total = (s - t).abs().pow(self.options.exponent).sum()
        T = self.options.temperature
        log_p_s = F.log_softmax(student.logits / T, dim=1)
        log_p_t = F.log_softmax(teacher.logits / T, dim=1)
        return {
            "feature": self.options.feature * total.clamp(min=torch.finfo(total.dtype).tiny).log(),
            "kd": T**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True),
        }


def standardised(x):
    """Each column with mean 0 and, but for the ε of batch norm, variance 1."""
    return (x - x.mean(dim=0)) * (x.var(dim=0, correction=0) + 1e-4).rsqrt()


@hookimpl
def kdray_distillers():
    return [DistillerSpec("srd", SRD)]
