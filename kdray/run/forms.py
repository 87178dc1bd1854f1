"""The form of each JSON file of a run folder: what its readers rely on. There may be more in it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import MismatchError


class Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Status(Form):
    state: str
    host: str = ""
    pid: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    error: str = ""


class DataFile(Form):
    fingerprint: str
    recipe: str = ""


class Trained(Form):
    run: str
    checkpoint: str


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


class Progress(Form):
    phase: str


class Failure(Form):
    rank: int
    type: str
    message: str
    final: bool
    traceback: str


class Scores(Form):
    top1: float


class Best(Scores):
    epoch: int
    split: str
    test_top1: float


class Network(Form):
    parameters: int | None


class Teacher(Network, Scores):
    model: str


class Alone(Network):
    last: Scores
    best: Best


class Summary(Network):
    name: str
    path: str
    student: str
    last: Scores
    best: Best
    teacher: Teacher | None = None
    teachers: dict[str, Teacher] = {}
    alone: Alone | None = None


class Row(Form):
    kind: str
    step: int


Teachers = dict[str, Trained]


def read(path: Path, form) -> dict | None:
    """The content of the file at `path`; None where there is none. Raises MismatchError where it does not have the
    form."""
    try:
        return parse(path.read_bytes(), form, str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MismatchError(f"{path} cannot be read: {error.strerror}") from error


def read_or_none(path: Path, form) -> dict | None:
    """The same, and None where it is damaged: for what only shows it."""
    try:
        return read(path, form)
    except MismatchError:
        return None


@cache
def _adapter(form) -> TypeAdapter:
    return TypeAdapter(form)


def parse(text: bytes, form, where: str) -> dict:
    """Raises MismatchError, with `where`, for a text that does not have the form."""
    adapter = _adapter(form)
    try:
        return adapter.dump_python(adapter.validate_json(text), exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise MismatchError(f"{where} is damaged: {f'{place}: ' if place else ''}{first['msg']}") from None
