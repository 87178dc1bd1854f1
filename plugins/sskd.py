"""SSKD: the student also learns how the teacher tells whose rotation a rotated picture is."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, Stage, hookimpl

ROTATIONS = ("rot90", "rot180", "rot270")


class SSKDOptions(Options):
    transformation: float = Field(2.7, ge=0, description="Weight of the rotated pictures' logits.")
    similarity: float = Field(10.0, ge=0, description="Weight of the similarities of rotated to upright pictures.")
    temperature: float = Field(4.0, gt=0, description="T of the logits.")
    similarity_temperature: float = Field(0.5, gt=0, description="T of the similarities.")
    keep: float = Field(
        1.0, ge=0, le=1, description="Share of the rotated pictures that the teacher classifies wrongly which count."
    )
    keep_similar: float = Field(
        0.75, ge=0, le=1, description="Share of those whose upright picture the teacher does not find which count."
    )
    init_epochs: int = Field(60, ge=1, description="Epochs in which the teacher's head is trained.")
    init_lr: float = Field(0.05, gt=0, description="Their learning rate.")


class SSKD(Distiller):
    """The teacher's logits of rotated pictures, and their similarities to the upright ones.

    Of all 3 B rotated pictures of the global batch: `transformation` T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))
    and `similarity` τ² · KL(softmax(A_t / τ) ‖ softmax(A_s / τ)), each mean over the pictures that count.

    A (3 B, B) are cosines of heads of two layers: of a rotated picture's embedding to each upright one's. A picture on
    which the teacher is right counts; of the others the share `keep` on which its error is least: the number of classes
    (of upright pictures) that it prefers to the right one. Equal errors: in the order of the samples and rotations.

    The teacher's head is trained first, in the stage `teacher_head`, to find the upright picture: cross-entropy of A.
    The published code drops its learning rate at epochs 30 and 45, and lets batch norm see the four rotations at once.
    """

    Options = SSKDOptions
    requires = Requires(student={"logits", "embedding"}, teacher={"logits", "embedding"}, views=ROTATIONS)
    paper = "Xu, Liu, Li, Loy: Knowledge Distillation Meets Self-Supervision. ECCV 2020, arXiv 2006.07114"
    published = Published(
        resnet8x4=76.20, wrn_16_2=76.04, source="SSKD README, best epoch, teachers of its own of 79.63 and 76.46"
    )
    scope = "batch"
    scheduled = frozenset({"transformation", "similarity", "temperature", "similarity_temperature"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.head_s, self.head_t = (two_layers(shapes.embedding[0]) for shapes in (setup.student, setup.teacher))

    def stages(self):
        return [
            Stage(
                "teacher_head", self.options.init_epochs, self.pretext, modules=(self.head_t,), lr=self.options.init_lr
            )
        ]

    def pretext(self, student, teacher, batch, step):
        return F.cross_entropy(similarities(self.head_t, teacher, step), own_places(batch))

    def forward(self, student, teacher, batch, step):
        o = self.options
        z_s, z_t = (torch.cat([x.views[name].logits for name in ROTATIONS]) for x in (student, teacher))
        A_s = similarities(self.head_s, student, step)
        with torch.no_grad():
            A_t = similarities(self.head_t, teacher, step)
        counts = choose(z_t, batch.target.repeat(len(ROTATIONS)), o.keep, batch, step)
        counts_similar = choose(A_t, own_places(batch), o.keep_similar, batch, step)
        return {
            "transformation": o.transformation * (divergence(z_s, z_t, o.temperature) * counts).mean(),
            "similarity": o.similarity * (divergence(A_s, A_t, o.similarity_temperature) * counts_similar).mean(),
        }


def two_layers(dim):
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))


def similarities(head, outputs, step):
    """A (3 b, B): cosines of this worker's rotated pictures, one rotation after the other, to all upright ones."""
    upright = step.gather(F.normalize(head(outputs.embedding), dim=1), differentiable=True)
    rotated = F.normalize(head(torch.cat([outputs.views[name].embedding for name in ROTATIONS])), dim=1)
    return rotated @ upright.T


def own_places(batch):
    """The column of its upright picture for every row of A."""
    own = batch.offset + torch.arange(len(batch.index), device=batch.index.device)
    return own.repeat(len(ROTATIONS))


def choose(scores, right, share, batch, step):
    """(3 b,): 0 for a picture that does not count, else 3 B / number of those that do, so that a mean over all rows of
    all workers is one over these."""
    error = (scores > scores.gather(1, right[:, None])).sum(dim=1)
    error = step.gather(error.view(len(ROTATIONS), -1).T.contiguous()).flatten()  # (3 B,), sample after sample
    wrong = (error > 0).sum()
    number = len(error) - wrong + (share * wrong).long()
    place = error.argsort(stable=True).argsort()
    counts = (place < number).to(scores.dtype) * len(error) / number.clamp(min=1)
    own = slice(batch.offset, batch.offset + len(batch.index))
    return counts.view(-1, len(ROTATIONS))[own].T.flatten()


def divergence(z_s, z_t, T):
    """T² · KL of each row."""
    log_p_s, log_p_t = F.log_softmax(z_s / T, dim=1), F.log_softmax(z_t / T, dim=1)
    return T**2 * F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim=1)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("sskd", SSKD)]
