"""Decoupled knowledge distillation: the target class against the rest, and the rest among themselves."""

import torch
import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, SearchSpaceSpec, hookimpl


class DKDOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T: both logits are divided by it.")
    alpha: float = Field(1.0, ge=0, description="α: weight of the target class against the rest (TCKD).")
    beta: float = Field(8.0, ge=0, description="β: weight of the other classes among themselves (NCKD).")
    standardise: bool = Field(
        False, description="Take the logits of each sample to mean 0 and deviation 1 first, as `lskd` does."
    )


class DKD(Distiller):
    """T² · (α · KL(b_t ‖ b_s) + β · KL(q_t ‖ q_s)), mean over the batch, where b = (p(y), 1 − p(y)) and q is the
    softmax over the C − 1 other classes. Terms `target` and `others`.

    The probabilities stay logarithms and the target's logit is left out rather than masked by a large number, so that
    nothing overflows, and two classes leave `others` at 0. The paper's linear warm-up over 20 epochs is a matter of
    the weight in the config.
    """

    Options = DKDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = "Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation. CVPR 2022, arXiv 2203.08679"
    published = Published(resnet8x4=76.32, wrn_16_2=76.24, source="mdistiller README, best epoch, 5 runs")
    scheduled = frozenset({"temperature", "alpha", "beta"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        b_s, q_s = self.split(student.logits, batch.target)
        b_t, q_t = self.split(teacher.logits, batch.target)
        return {
            "target": self.options.alpha * T**2 * F.kl_div(b_s, b_t, reduction="batchmean", log_target=True),
            "others": self.options.beta * T**2 * F.kl_div(q_s, q_t, reduction="batchmean", log_target=True),
        }

    def split(self, z, y):
        """log b (B, 2) and log q (B, C − 1)."""
        if self.options.standardise:
            z = (z - z.mean(dim=1, keepdim=True)) / (z.std(dim=1, keepdim=True) + 1e-7)
        z, y = z / self.options.temperature, y[:, None]
        C = z.shape[1]
        others = z.gather(1, (y + torch.arange(1, C, device=z.device)) % C)
        b = torch.cat([z.gather(1, y), others.logsumexp(dim=1, keepdim=True)], dim=1)
        return F.log_softmax(b, dim=1), F.log_softmax(others, dim=1)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("dkd", DKD)]


@hookimpl
def kdray_search_spaces():
    return [SearchSpaceSpec("dkd", {"temperature": {"loguniform": [1.0, 16.0]}, "beta": {"loguniform": [1.0, 16.0]}})]
