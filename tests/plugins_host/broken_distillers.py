"""Distillers with one fault each, and one without. A module of its own: the kit's workers import it."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import ConfigError, Distiller, Options, Requires, Stage


class SomeOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T.")
    floor: float = Field(0.1, ge=0, description="A small number.")


class Good(Distiller):
    """Relations in the batch, a head, a running mean, noise, a stage, a scheduled option."""

    Options = SomeOptions
    requires = Requires(student={"embedding", "logits"}, teacher={"embedding", "logits"})
    scope = "batch"
    scheduled = frozenset({"temperature"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.head = nn.Linear(setup.student.embedding[0], setup.teacher.embedding[0])
        self.probe = nn.Linear(setup.teacher.embedding[0], setup.num_classes)
        self.register_buffer("mean", torch.zeros(setup.teacher.embedding[0]))

    def stages(self):
        return [Stage("probe", 1, self.first, modules=(self.probe,))]

    def first(self, student, teacher, batch, step):
        return F.cross_entropy(self.probe(teacher.embedding), batch.target)

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        everything = self.everything(student, step)
        relation = F.normalize(everything, dim=1, eps=1e-3) @ F.normalize(everything, dim=1, eps=1e-3).T
        noise = torch.rand(batch.size, 1, generator=step.generator, dtype=torch.float64)
        noise = noise[batch.offset : batch.offset + len(batch.index)].to(student.logits)
        log_p, q = F.log_softmax(student.logits / T, dim=1), F.softmax(teacher.logits.detach() / T, dim=1)
        return {
            "relation": relation.square().mean(),
            "kd": F.kl_div(log_p, q, reduction="batchmean"),
            "hint": ((self.head(student.embedding) - teacher.embedding - self.mean).tanh() * noise).square().mean(),
        }

    def everything(self, student, step):
        return step.gather(student.embedding, differentiable=True)

    def after_backward(self, batch, step):
        with torch.no_grad():
            self.mean.lerp_(step.gather(batch.target.to(self.mean)).mean().expand_as(self.mean), 0.1)


class Detached(Good):
    """The student learns nothing from it."""

    def forward(self, student, teacher, batch, step):
        student.logits, student.embedding = student.logits.detach(), student.embedding.detach()
        return super().forward(student, teacher, batch, step)


class Unread(Good):
    """It asks for maps and does nothing with them."""

    requires = Requires(student={"embedding", "logits", "features"}, teacher={"embedding", "logits"})


class IdleParameter(Good):
    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.idle = nn.Linear(2, 2)


class TrainsTeacher(Good):
    """The teacher's own head becomes its parameter."""

    requires = Requires(student={"embedding", "logits"}, teacher={"embedding", "logits", "head"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.borrowed = nn.Parameter(setup.teacher_head[0])

    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return terms | {"head": F.cross_entropy(self.head(student.embedding) @ self.borrowed.T, batch.target)}


class WritesTeacher(Good):
    """Other losses read what it has scaled."""

    def forward(self, student, teacher, batch, step):
        teacher.logits.div_(2)
        return super().forward(student, teacher, batch, step)


class LocalStatistic(Good):
    """Relations among this worker's rows alone."""

    def everything(self, student, step):
        return student.embedding


class LocalNoise(Good):
    """Drawn for this worker's rows alone, so that workers draw the same."""

    def forward(self, student, teacher, batch, step):
        noise = torch.rand(len(batch.index), generator=step.generator, dtype=torch.float64).to(student.logits)
        terms = super().forward(student, teacher, batch, step)
        return terms | {"noise": (student.logits.mean(dim=1) * noise).mean()}


class LocalBuffer(Good):
    """Written from values that were not gathered."""

    def after_backward(self, batch, step):
        step.gather(batch.target)
        self.mean += batch.target.float().mean().to(self.mean)


class UnevenGather(Good):
    """Only the first worker calls it once more."""

    def forward(self, student, teacher, batch, step):
        if step.rank == 0 and step.world_size > 1:
            step.gather(student.logits[:, :1])
        return super().forward(student, teacher, batch, step)


class UnsavedState(Good):
    """A mean in a Python attribute."""

    seen = 0.0

    def forward(self, student, teacher, batch, step):
        self.seen = 0.5 * self.seen + float(step.gather(batch.target).double().mean())
        terms = super().forward(student, teacher, batch, step)
        return terms | {"hint": terms["hint"] * (1 + self.seen)}


class SharedState(Good):
    """Two buffers in one memory: no checkpoint can hold them."""

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.register_buffer("twin", self.mean)


class GlobalRandom(Good):
    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return terms | {"hint": terms["hint"] * torch.rand(())}


class SampleScope(Good):
    scope = "sample"


class BatchScope(Distiller):
    requires = Requires(student={"logits"})
    scope = "batch"

    def forward(self, student, teacher, batch, step):
        return student.logits.square().mean()


class NotScheduled(Good):
    """It has made up its mind when it was built."""

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.T = options.temperature

    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return terms | {"kd": terms["kd"] * self.T}


class NoNumber(Good):
    """log of a probability that is 0 in float32."""

    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return terms | {"ce": -student.logits.softmax(dim=1).log().mean()}


class NoNumberInSmallBatch(Good):
    """0 / 0 where a batch has no pair of one class."""

    def forward(self, student, teacher, batch, step):
        everything, target = self.everything(student, step), step.gather(batch.target)
        same = (target[:, None] == target) & ~torch.eye(len(target), dtype=torch.bool)
        pairs = torch.cdist(everything + 1, everything).square()[same].sum() / (same.sum() * (len(target) > 3))
        return super().forward(student, teacher, batch, step) | {"pairs": pairs}


class Coarse(Good):
    """A difference of large numbers: nothing is left of it in lower precision."""

    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return terms | {"kd": (terms["kd"] + 1e9) - 1e9}


class NoScalar(Good):
    def forward(self, student, teacher, batch, step):
        return student.logits.square().mean(dim=1)


class NamesChange(Good):
    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return {f"{name}{step.number}": term for name, term in terms.items()}


class FitsNothing(Good):
    def __init__(self, options, setup):
        raise ConfigError("there is no network like that")


class ReadsMore(Good):
    """It reads what it has not asked for."""

    def forward(self, student, teacher, batch, step):
        return super().forward(student, teacher, batch, step) | {"map": student.last_map.mean()}


class NeededOptions(Options):
    size: int = Field(gt=0, description="Without a default.")


class NeedsOption(Good):
    Options = NeededOptions
    scheduled = frozenset()


class IdleStage(Good):
    """Its stage trains nothing."""

    def stages(self):
        return [*super().stages(), Stage("idle", 1, lambda student, teacher, batch, step: {})]

    def after_backward(self, batch, step):
        pass


class OneOfTwo(Good):
    """It says that it knows mixed pictures, and takes each for one of its own class."""

    mixes = True


class BothAlways(Good):
    """A mixed picture is as much of the one class as of the other, whatever its share."""

    mixes = True

    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return terms if batch.partner is None else terms | {"kd": terms["kd"] + batch.partner.double().mean()}


class DeploysNonsense(Good):
    def deployed(self, student):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(3).double())


class PreciseTeacher(Good):
    """Lives on digits of the teacher that a cache does not keep."""

    def forward(self, student, teacher, batch, step):
        terms = super().forward(student, teacher, batch, step)
        return terms | {"kd": terms["kd"] + (1e6 * teacher.logits).sin().mean()}
