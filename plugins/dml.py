"""Deep mutual learning: students that start at different weights learn from each other, without a teacher."""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class DMLOptions(Options):
    peers: int = Field(1, ge=1, description="K − 1: networks like the student that train beside it.")
    temperature: float = Field(1.0, gt=0, description="T: all logits are divided by it before the softmax.")


class DML(Distiller):
    """The student and its peers follow each other's probabilities while all learn the labels.

    Of K networks, each follows each other one: T² · KL(softmax(z_j / T) ‖ softmax(z_k / T)), mean over the batch and
    over the others j. Terms `student`, for k the student, `peers`, summed over the other networks k, and
    `peers_label`, the sum of their cross-entropies with the labels.

    The cross-entropy of the student is the loss `ce`'s business: at weights of 1 all networks have one objective.
    Gradients flow into the network that follows, not into the one that is followed. All see the same pictures and are
    updated at once; the paper updates one after the other. The peers train with the student's optimizer, and the
    student alone is evaluated and exported.
    """

    Options = DMLOptions
    requires = Requires(student={"logits", "pictures"})
    paper = "Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning. CVPR 2018, arXiv 1706.00384"
    scheduled = frozenset({"temperature"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.peers = nn.ModuleList(setup.new_student() for _ in range(options.peers))

    def forward(self, student, teacher, batch, step):
        logits = [student.logits, *(peer(student.pictures) for peer in self.peers)]
        follows = [self.follow(k, logits) for k in range(len(logits))]
        return {
            "student": follows[0],
            "peers": sum(follows[1:]),
            "peers_label": sum(F.cross_entropy(z, batch.target) for z in logits[1:]),
        }

    def follow(self, k, logits):
        T, others = self.options.temperature, [z for j, z in enumerate(logits) if j != k]
        log_p = F.log_softmax(logits[k] / T, dim=1)
        divergences = [
            F.kl_div(log_p, F.log_softmax(z.detach() / T, dim=1), reduction="batchmean", log_target=True)
            for z in others
        ]
        return T**2 * sum(divergences) / len(others)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("dml", DML)]
