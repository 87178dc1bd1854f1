"""The section `tune:` of a config: which values `kdray tune` tries, how it chooses them, and when it gives one up."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from ..options import Options

Positive = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field()]
AtLeastOne = Annotated[int, Field(ge=1)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
PositiveRange = Annotated[list[Positive], Field(min_length=2, max_length=2)]
WholeRange = Annotated[list[Whole], Field(min_length=2, max_length=2)]
AtLeastOneRange = Annotated[list[AtLeastOne], Field(min_length=2, max_length=2)]
Values = Annotated[list[Any], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Metric = Literal["validation/top1", "validation/top5", "validation/loss", "loss", "parameters"]
KINDS = ("uniform", "loguniform", "int", "logint", "choice", "grid")


class Dimension(Options):
    """How one value is drawn. Exactly one of uniform, loguniform, int, logint, choice and grid."""

    uniform: Range | None = Field(None, description="Evenly between two numbers.")
    loguniform: PositiveRange | None = Field(None, description="Evenly between the logarithms of two numbers.")
    int: WholeRange | None = Field(None, description="A whole number between two, both included.")
    logint: AtLeastOneRange | None = Field(None, description="The same, evenly between their logarithms.")
    choice: Values | None = Field(None, description="One of these values.")
    grid: Values | None = Field(None, description="Each of these values (searcher: grid).")
    when: dict[str, Any] = Field(
        {}, description="Only where `choice`s above have these values: `{optimizer.name: sgd}` (searcher: optuna)."
    )

    @model_validator(mode="after")
    def one_kind(self):
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(KINDS)}" + (f", not {' and '.join(given)}" if given else ""))
        if not self.is_discrete and self.values[0] >= self.values[1]:
            raise ValueError(f"{self.kind}: the first number must be the smaller one")
        return self

    @model_serializer(mode="wrap")
    def _short(self, write):
        return {key: value for key, value in write(self).items() if value is not None and value != {}}

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> list:
        """The two ends, or all values."""
        return getattr(self, self.kind)

    @property
    def is_discrete(self) -> bool:
        return self.kind in ("choice", "grid")

    @property
    def is_log(self) -> bool:
        return self.kind.startswith("log")

    @property
    def is_whole(self) -> bool:
        return self.kind.endswith("int")


class TuneConfig(Options):
    """A search. The metric comes from a validation split; the test set is for the winner."""

    space: dict[str, Dimension] = Field(
        {},
        description="Dotted path to what is drawn: `losses.crd.temperature: {loguniform: [0.03, 0.3]}`. Default: what "
        "the losses of the config offer, and optimizer.lr.",
    )
    searcher: Literal["random", "grid", "optuna", "pbt"] = Field(
        "random",
        description="random; grid: every combination; optuna: TPE; pbt: population-based training, in which trials "
        "take over weights and values of better ones.",
    )
    scheduler: Literal["none", "asha", "median"] | None = Field(
        None,
        description="What stops a trial early: asha, at rungs of which only the best go on; median, when it is worse "
        "than the median of the others. Default: asha, where searcher and metric allow it.",
    )
    trials: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How many. Default: 16; for grid, as many as there are combinations."
    )
    metric: Metric | Annotated[list[Metric], Field(min_length=1)] = Field(
        "validation/top1",
        description="What is compared: accuracies are made large, losses and parameters small. Several (optuna): the "
        "first decides which trial is the winner.",
    )
    seeds: list[Seed] = Field([], description="The winner is trained once for each. Default: the seed of the config.")
    grace: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Epochs before a trial may be stopped. Default: a ninth of all, at least one."
    )
    reduction: Annotated[int, Field(ge=2)] | None = Field(
        None, description="asha: one of so many goes on at a rung, to so many times the epochs. Default: 3."
    )
    interval: Annotated[int, Field(ge=1)] | None = Field(
        None, description="pbt: epochs between two exchanges. Default: a tenth of all, at least one."
    )
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Trials at a time. Default: as many as the cluster holds."
    )
    trial_workers: Annotated[int, Field(ge=1)] = Field(
        1, description="Workers of a trial: 1 trains in the trial's own process, more are a Ray Train run."
    )
    cpus_per_trial: Positive | None = Field(
        None, description="CPUs of all workers of a trial, fractions allowed. Default: one a worker."
    )
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of a trial, fractions allowed. Default: one a worker where the cluster has any."
    )

    @model_validator(mode="after")
    def fits_together(self):
        for text in self._misfits():
            raise ValueError(text)
        return self

    def _misfits(self):
        several = len(self.metrics) > 1
        if len(set(self.metrics)) < len(self.metrics):
            yield "metric: one is named twice"
        if several and self.searcher != "optuna":
            yield f"searcher: {self.searcher} compares one metric; optuna takes several"
        if several and self.scheduler not in (None, "none"):
            yield f"scheduler: {self.scheduler} compares one metric: with several, trials are not stopped early"
        if self.searcher == "pbt" and self.scheduler not in (None, "none"):
            yield "scheduler: pbt stops no trials, they take over from better ones: remove it"
        if self.searcher == "grid" and self.trials is not None:
            yield "trials: a grid has as many as there are combinations: remove it"
        for key, applies, where in (
            ("reduction", self.stops == "asha", "scheduler: asha"),
            ("grace", self.stops != "none", "a scheduler (asha or median)"),
            ("interval", self.searcher == "pbt", "searcher: pbt"),
        ):
            if getattr(self, key) is not None and not applies:
                yield f"{key} has no effect without {where}"

    @property
    def metrics(self) -> list[str]:
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @property
    def stops(self) -> str:
        """none, asha or median."""
        wanted = "none" if self.searcher in ("pbt", "grid") or len(self.metrics) > 1 else "asha"
        return self.scheduler or wanted

    @property
    def count(self) -> int:
        """Of trials."""
        if self.searcher == "grid":
            return prod(len(dimension.values) for dimension in self.space.values())
        return self.trials or 16


def mode(metric: str) -> str:
    """Whether a metric is made large or small."""
    return "max" if metric in ("validation/top1", "validation/top5") else "min"
