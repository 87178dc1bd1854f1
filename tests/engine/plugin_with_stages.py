"""Distillers that use every part of the contract, for the tests of the engine."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, Stage, hookimpl


class Staged(Distiller):
    """First the student's maps alone, then a look at the teacher, then what it saw is the target."""

    requires = Requires(student={"features", "embedding"}, teacher={"features", "embedding"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        (wide_s, *_), (wide_t, *_) = setup.student.features[0], setup.teacher.features[0]
        self.connector = nn.Sequential(nn.Conv2d(wide_s, wide_t, 1), nn.BatchNorm2d(wide_t))
        self.embed = nn.Linear(setup.student.embedding[0], setup.teacher.embedding[0])
        self.register_buffer("sums", torch.zeros(setup.num_classes, setup.teacher.embedding[0]))
        self.register_buffer("counts", torch.zeros(setup.num_classes))
        self.register_buffer("means", torch.zeros(setup.num_classes, setup.teacher.embedding[0]))

    def stages(self):
        return [
            Stage("hint", 2, self.hint, student=True, modules=(self.connector,), lr=0.01),
            Stage("look", 1, self.look, finish=self.finish),
        ]

    def hint(self, student, teacher, batch, step):
        return {"mse": F.mse_loss(self.connector(student.features[0]), teacher.features[0])}

    @torch.no_grad()
    def look(self, student, teacher, batch, step):
        assert student.embedding is None
        target = step.gather(batch.target)
        self.sums.index_add_(0, target, step.gather(teacher.embedding).to(self.sums))
        self.counts += target.bincount(minlength=len(self.counts))
        return {}

    def finish(self):
        self.means.copy_(self.sums / self.counts[:, None])

    def forward(self, student, teacher, batch, step):
        return F.mse_loss(self.embed(student.embedding), self.means[batch.target])


class OnlyBefore(Distiller):
    """Nothing is left for the main loop."""

    requires = Requires(student={"embedding"})

    def stages(self):
        return [Stage("norm", 1, self.norm, student=True)]

    def norm(self, student, teacher, batch, step):
        return student.embedding.pow(2).mean()

    def forward(self, student, teacher, batch, step):
        return {}


class TwoViews(Distiller):
    """How far the student is from the teacher on each picture, and how far the pictures are from each other."""

    requires = Requires(student={"logits", "pictures"}, teacher={"logits"}, views=("turned", "other"))

    def forward(self, student, teacher, batch, step):
        turned, other = student.views["turned"], student.views["other"]
        assert teacher.views["turned"].logits.grad_fn is None
        return {
            "turned": F.mse_loss(turned.logits, teacher.views["turned"].logits),
            "other": F.mse_loss(other.logits, teacher.views["other"].logits),
            "is_turned": (turned.pictures.flip(3) - student.pictures).abs().max(),
            "is_other": (other.pictures - student.pictures).abs().max(),
        }


class Moody(Distiller):
    """Has nothing to say in the second epoch."""

    requires = Requires(student={"logits"}, teacher={"logits"})

    def forward(self, student, teacher, batch, step):
        return {} if batch.epoch == 1 else {"mse": F.mse_loss(student.logits, teacher.logits)}


class TwiceOptions(Options):
    repeat: bool = Field(True, description="Whether the stage stands there twice.")


class Twice(OnlyBefore):
    """Two stages of one name, and one head under two."""

    Options = TwiceOptions

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.a = nn.Linear(2, 2)
        self.both = nn.ModuleList([self.a])

    def stages(self):
        return [Stage("norm", 1, self.norm, student=True)] * (2 if self.options.repeat else 0)

    def forward(self, student, teacher, batch, step):
        return self.a(student.embedding[:, :2]).pow(2).mean()


class HeadOptions(Options):
    pass


class Head(nn.Module):
    def __init__(self, student, projector, head):
        super().__init__()
        self.student, self.projector = student, projector
        self.register_buffer("weight", head[0])
        self.register_buffer("bias", head[1])

    def forward(self, x):
        return F.linear(self.projector(self.student(x).embedding), self.weight, self.bias)


class NewHead(Distiller):
    """The student answers with the teacher's classifier."""

    Options = HeadOptions
    requires = Requires(student={"embedding"}, teacher={"embedding", "head"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.projector = nn.Linear(setup.student.embedding[0], setup.teacher.embedding[0])
        self.head = setup.teacher_head

    def forward(self, student, teacher, batch, step):
        return F.mse_loss(self.projector(student.embedding), teacher.embedding)

    def deployed(self, student):
        return Head(student, self.projector, self.head)


@hookimpl
def kdray_distillers():
    return [
        DistillerSpec("staged", Staged),
        DistillerSpec("only_before", OnlyBefore),
        DistillerSpec("two_views", TwoViews),
        DistillerSpec("new_head", NewHead),
        DistillerSpec("moody", Moody),
        DistillerSpec("twice", Twice),
    ]
