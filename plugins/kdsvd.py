"""Distillation by singular vectors: how the main direction of a map's channels turns from stage to stage."""

from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import ConfigError, Distiller, DistillerSpec, MapChoice, Options, Requires, hookimpl, paired_maps

SPARE = 3  # further singular vectors of the student among which those nearest to the teacher's are sought


class KDSVDOptions(Options):
    rank: int = Field(1, ge=1, description="k: singular vectors of a teacher's map that are followed.")
    maps: Annotated[MapChoice, Field(min_length=2)] = None


class KDSVD(Distiller):
    """Σ over neighbouring maps of ‖R_s − R_t‖² a sample, R_cd = exp(−(v_c − v′_d)² / 8), mean over the batch.

    v (C, k): the top right singular vectors of a map as a matrix (H · W, C), v′ those of the map before. Of the
    student's top k + 3 the ones nearest in angle to the teacher's are taken, with the sign that agrees; both are scaled
    by the teacher's singular values, of length 1 over the k. The form is RepDistiller's. It leaves the sign of the
    teacher's vectors to the SVD routine; here their sum is positive, as it is for a map behind a ReLU. Its script
    names no weight, and no numbers are published for these networks.
    """

    Options = KDSVDOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition. ECCV 2018"

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("kdsvd", setup, "features", options.maps, least=2)
        C_s, C_t = ([side.features[i][0] for i in self.maps] for side in (setup.student, setup.teacher))
        if C_s != C_t:
            raise ConfigError(
                f"kdsvd: the student's maps have {C_s} channels, the teacher's {C_t}; singular vectors are compared "
                "channel by channel. Choose networks of one width, or those `maps` that agree."
            )

    def forward(self, student, teacher, batch, step):
        vectors = [self.aligned(student.features[i], teacher.features[i]) for i in self.maps]
        loss = 0
        for (before_s, before_t), (v_s, v_t) in pairwise(vectors):
            loss = loss + (rbf(v_s, before_s) - rbf(v_t, before_t)).square().sum() / len(v_s)
        return loss

    def aligned(self, f_s, f_t):
        k = self.options.rank
        v_t, sigma = singular(f_t, k)
        v_t = torch.where(v_t.sum(dim=1, keepdim=True) < 0, -v_t, v_t)
        v_s, _ = singular(f_s, k + SPARE)
        cosine = v_s.detach().mT @ v_t  # (B, k + 3, k)
        nearest = cosine.abs().argmax(dim=1, keepdim=True)
        choice = torch.zeros_like(cosine).scatter(1, nearest, cosine.gather(1, nearest).sign())
        sigma = F.normalize(sigma, dim=1)[:, None]
        return v_s @ choice * sigma, v_t * sigma


def singular(f, n):
    """The top n right singular vectors (B, C, n) of the maps, as columns, and the singular values (B, n)."""
    x = f.flatten(2).mT  # (B, H · W, C)
    if x.shape[1] < x.shape[2]:  # of the smaller of the two Gram matrices: v is xᵀ u of length 1
        xu = x.mT @ TopEigenvectors.apply(x @ x.mT, n)
        v, sigma = F.normalize(xu, dim=1), xu.detach().norm(dim=1)
    else:
        v = TopEigenvectors.apply(x.mT @ x, n)
        sigma = (x @ v).detach().norm(dim=1)
    return v, sigma


def rbf(v, before):
    return torch.exp(-(v[:, :, None] - before[:, None]).square() / 8)


class TopEigenvectors(torch.autograd.Function):
    """Unit eigenvectors of the n largest eigenvalues of A = Aᵀ, as columns.

    dv_j = Σ_i v_i ⟨v_i, dA v_j⟩ / (λ_j − λ_i). Torch's backward pass divides by the gaps of all eigenvalues, and maps
    of low rank have many that are 0; here only the gaps of the top n count, and vectors of equal eigenvalues, between
    which nothing decides, do not turn.
    """

    @staticmethod
    def forward(ctx, A, n):
        values, V = torch.linalg.eigh(A)
        values, V = values.flip(-1), V.flip(-1)
        ctx.save_for_backward(values, V)
        return V[..., :n].contiguous()

    @staticmethod
    def backward(ctx, g):
        values, V = ctx.saved_tensors
        n = g.shape[-1]
        gap = values[..., None, :n] - values[..., :, None]  # (…, C, n): λ_j − λ_i
        tiny = 8 * torch.finfo(g.dtype).eps * values[..., :1, None].abs()
        turn = torch.where(gap.abs() > tiny, (V.mT @ g) / gap, 0)
        gA = V @ turn @ V[..., :n].mT
        return (gA + gA.mT) / 2, None


@hookimpl
def kdray_distillers():
    return [DistillerSpec("kdsvd", KDSVD)]
