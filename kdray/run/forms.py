"""The form of files of a run folder: what their readers rely on. There may be more in them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, RootModel


class Form(BaseModel):
    model_config = ConfigDict(strict=True)


class DataFile(Form):
    fingerprint: str


class Trained(Form):
    run: str
    checkpoint: str


class Teachers(RootModel):
    root: dict[str, Trained]


class Plugin(Form):
    name: str
    distribution: str | None
    version: str | None
    sha256: str | None
    error: str | None


class Environment(Form):
    cpus: int | None
    gpus: list[str]
    packages: dict[str, str | None]
    plugins: list[Plugin]


class Scores(Form):
    top1: float


class Best(Form):
    epoch: int
    split: str
    test_top1: float


class Alone(Form):
    name: str
    parameters: int


class Teacher(Form):
    model: str
    parameters: int | None
    top1: float


class Summary(Form):
    last: Scores
    best: Best
    parameters: int
    teacher: Teacher | None = None
    teachers: dict[str, Teacher] = {}
    alone: Alone | None = None


class Epoch(Form):
    """A row of metrics.jsonl."""

    epoch: int
    loss: float
    terms: dict[str, float]
    test: Scores
    validation: Scores | None = None
    pictures_per_second: float


class Failure(Form):
    rank: int
    type: str
    message: str
    final: bool
    traceback: str
