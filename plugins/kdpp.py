"""KD++: the student's embedding grows long and turns to the teacher's mean embedding of its class."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, Stage, hookimpl


class KDPPOptions(Options):
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of the entries that are left out before the projection, where there is one."
    )


class KDPP(Distiller):
    """1 − ⟨s, e_y⟩ / max(‖s‖, ‖t‖), mean over the batch: the ND loss, for norm and direction (Wang et al.).

    s, t: embeddings (D_t) of student and teacher. e_y: direction of the mean of the teacher's embeddings over the
    training pictures of class y, from one pass over them, augmented as in training, before the first epoch. While s is
    the shorter one, the loss rewards its length along e_y; from there on only its angle counts.

    A student's embedding of another width goes through batch norm, dropout and a linear layer.

    KD++ is this loss beside cross-entropy and `kd`; beside `dkd` it is DKD++, beside `reviewkd` ReviewKD++.
    """

    Options = KDPPOptions
    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = (
        "Wang, Cheng, Duan, Wang, Feng, Kong: Improving Knowledge Distillation via Regularizing Feature Norm and "
        "Direction. arXiv 2305.17007"
    )
    published = Published(resnet8x4=75.54, source="KD++ README, with KD at weight 3.5")
    scope = "batch"
    scheduled = frozenset({"dropout"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        (width_s,), (width_t,) = setup.student.embedding, setup.teacher.embedding
        self.norm = nn.BatchNorm1d(width_s) if width_s != width_t else None
        self.project = nn.Linear(width_s, width_t) if width_s != width_t else None
        # While the stage looks: sums of the teacher's embeddings by class. Afterwards: e, of length 1.
        self.register_buffer("centres", torch.zeros(setup.num_classes, width_t))

    def stages(self):
        return [Stage("class_means", 1, self.look, finish=self.turn_to_directions)]

    @torch.no_grad()
    def look(self, student, teacher, batch, step):
        t, y = step.gather(teacher.embedding), step.gather(batch.target)
        self.centres += F.one_hot(y, len(self.centres)).to(t.dtype).T @ t
        return {}

    def turn_to_directions(self):
        self.centres.copy_(F.normalize(self.centres, dim=1))

    def forward(self, student, teacher, batch, step):
        s, e = self.projected(student.embedding, batch, step), self.centres[batch.target]
        longest = torch.maximum(s.norm(dim=1), teacher.embedding.norm(dim=1))
        longest = longest.where(longest > 0, 1.0)
        return (1 - (s * e).sum(dim=1) / longest).mean()

    def projected(self, x, batch, step):
        if self.project is None:
            return x
        p, generator = self.options.dropout, step.device_generator
        drawn = torch.rand(batch.size, x.shape[1], generator=generator, device=generator.device)
        kept = drawn[batch.offset : batch.offset + len(x)] >= p
        return self.project(self.norm(x) * kept.to(x) / (1 - p))


@hookimpl
def kdray_distillers():
    return [DistillerSpec("kdpp", KDPP)]
