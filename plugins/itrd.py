"""ITRD: embeddings of student and teacher correlate entry by entry, and share the relations between the samples."""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class ITRDOptions(Options):
    alpha: float = Field(1.01, ge=0.5, description="α, Rényi's order, in the correlation term.")
    correlation: float = Field(2.0, ge=0, description="β_corr: factor of the correlation term.")
    mutual: float = Field(1.0, ge=0, description="β_mi: factor of the mutual information term.")


class ITRD(Distiller):
    """Two terms over the global batch of n samples (Miles et al.), with f_s = W s + b in the teacher's width.

    `correlation`: β_corr · log₂ Σ_d |c_d − 1|^{2α}, c_d = (1/n) Σ_i f̂_s,id f̂_t,id, each entry d standardised over the
    batch with the unbiased deviation. An entry that is constant there has c_d = 0; published code divides by 0.

    `mutual`: β_mi · (‖G_s‖² − ‖G_st‖²), G_s, G_t the Gram matrices of embeddings of length 1, G_st = G_s ∘ G_t,
    each divided by its trace. These are Rényi entropies of order 2 without their logarithms. As in published code this
    term takes the student's embedding itself, without W, where the widths are equal.

    The README's command for WRN-40-2 to WRN-16-2 gives these defaults; its training script has α 1.5 and β_mi 0.05.
    """

    Options = ITRDOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = (
        "Miles, Lopez-Rodriguez, Mikolajczyk: Information Theoretic Representation Distillation. BMVC 2022, "
        "arXiv 2112.00459"
    )
    published = Published(resnet8x4=76.69, wrn_16_2=76.12, source="ITRD README, last epoch")
    scope = "batch"
    scheduled = frozenset({"alpha", "correlation", "mutual"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        width_s, width_t = setup.student.embedding[0], setup.teacher.embedding[0]
        self.embed = nn.Linear(width_s, width_t)
        self.same_width = width_s == width_t

    def forward(self, student, teacher, batch, step):
        s = step.gather(student.embedding, differentiable=True)
        t = step.gather(teacher.embedding)
        f = self.embed(s)
        return {
            "correlation": self.options.correlation * self.correlation(f, t),
            "mutual": self.options.mutual * self.mutual(s if self.same_width else f, t),
        }

    def correlation(self, f, t):
        # Standardised columns have length √(n − 1): their product is n − 1 times the cosine of the centred ones.
        n = len(f)
        f, t = (F.normalize(x - x.mean(dim=0), dim=0) for x in (f, t))
        c = (f * t).sum(dim=0) * (n - 1) / n
        return (c - 1).abs().pow(2 * self.options.alpha).sum().log2()

    def mutual(self, f, t):
        f, t = F.normalize(f, dim=1), F.normalize(t, dim=1)
        G_s, G_st = f @ f.T, (f @ f.T) * (t @ t.T)
        return normalised(G_s).pow(2).sum() - normalised(G_st).pow(2).sum()


def normalised(G):
    """G / tr G; a trace of 0, of vectors that are all 0, leaves it 0."""
    return G / G.trace().clamp(min=1e-12)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("itrd", ITRD)]
