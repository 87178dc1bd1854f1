"""CompRess: similarities to queues of earlier samples."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, Ring, hookimpl


class CompRessOptions(Options):
    queues: Literal[2, 1] = Field(
        2,
        description="2: each network meets its own embeddings of the queued samples. 1: both meet the teacher's, the "
        "student through a linear layer.",
    )
    count: int = Field(128000, gt=0, description="Length of a queue.")
    temperature: float = Field(0.04, gt=0, description="τ of both networks' similarities.")


class CompRess(Distiller):
    """A sample is as near to the queued samples for the student as it is for the teacher.

    KL(p_t ‖ p_s), mean over the batch, with p = softmax(z · Q / τ) over the queue Q of earlier samples; all vectors
    have length 1. The queues are written after they were scored, by both networks at the same places.

    With two queues the student's own one holds its embeddings as they were. The published code offers this
    (`train_student_without_momentum.py`) beside the paper's main form, whose queue is filled by a momentum copy of the
    student; that one is not here.
    """

    Options = CompRessOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = (
        "Koohpayegani, Tejankar, Pirsiavash: CompRess: Self-Supervised Learning by Compressing Representations. "
        "NeurIPS 2020, arXiv 2010.14713"
    )
    scope = "batch"
    scheduled = frozenset({"temperature"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        wide, dim = setup.student.embedding[0], setup.teacher.embedding[0]
        own = {"student": wide} if options.queues == 2 else {}
        self.embed_s = nn.Identity() if own else nn.Linear(wide, dim)
        self.queue = Ring(options.count, setup.generator, teacher=dim, **own)

    def forward(self, student, teacher, batch, step):
        z_s = F.normalize(self.embed_s(student.embedding), dim=1)
        z_t = F.normalize(teacher.embedding.detach(), dim=1)
        Q_t = self.queue.teacher.to(z_t.dtype)
        Q_s = self.queue.student.to(z_s.dtype) if self.options.queues == 2 else Q_t
        self.fresh = {"teacher": z_t, "student": z_s.detach()} if self.options.queues == 2 else {"teacher": z_t}
        log_p_s = F.log_softmax(z_s @ Q_s.T / self.options.temperature, dim=1)
        log_p_t = F.log_softmax(z_t @ Q_t.T / self.options.temperature, dim=1)
        return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)

    def after_backward(self, batch, step):
        self.queue.push(step, **self.fresh)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("compress", CompRess)]
