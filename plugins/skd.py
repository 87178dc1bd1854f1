"""Streamlined distillation: softened probabilities, and the directions of the logits relative to each other."""

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class SKDOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T of the softened probabilities.")
    regularisation: float = Field(0.1, gt=0, description="λ: added to the diagonal of the covariance (Tikhonov).")


class SKD(Distiller):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)) + mean over rows of ‖L⁻¹ d_i‖. Terms `instance` and `direction`.

    d_i are the rows of D = (U_s U_sᵀ − U_t U_tᵀ) / C, (B, B) over the global batch; U are the logits with rows of
    length 1. L Lᵀ = Cov(D) + λ I is Cholesky's decomposition: the norm is Mahalanobis'. The division by C stands in
    the published code. That code also multiplies each term, already a single number, by the mean of a mask over half
    of the samples or classes; that factor of ½ is left to the config's weight.
    """

    Options = SKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = "Streamlined Knowledge Distillation. CVPR 2026"
    published = Published(resnet8x4=78.33, wrn_16_2=76.60, source="README of HyunJunSik/StreamLined; learning rate 0.1")
    scope = "batch"
    scheduled = frozenset({"temperature", "regularisation"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        log_p_s, log_p_t = F.log_softmax(student.logits / T, dim=1), F.log_softmax(teacher.logits / T, dim=1)
        U_s = step.gather(F.normalize(student.logits, dim=1), differentiable=True)
        U_t = step.gather(F.normalize(teacher.logits, dim=1))
        D = (U_s @ U_s.T - U_t @ U_t.T) / U_s.shape[1]
        centred = D - D.mean(dim=0)
        covariance = centred.T @ centred / max(len(D) - 1, 1)
        # `cholesky` would ask the device whether it went well. It does but for the smallest λ; then the loss is NaN.
        L, failed = torch.linalg.cholesky_ex(
            covariance + self.options.regularisation * torch.eye(len(D), dtype=D.dtype, device=D.device)
        )
        L = L.masked_fill(failed > 0, torch.nan)
        whitened = torch.linalg.solve_triangular(L, D.T, upper=False)  # its columns are L⁻¹ d_i, since D is symmetric
        return {
            "instance": T**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True),
            "direction": whitened.norm(dim=0).mean(),
        }


@hookimpl
def kdray_distillers():
    return [DistillerSpec("skd", SKD)]
