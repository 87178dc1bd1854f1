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


class Failure(Form):
    rank: int
    type: str
    message: str
    final: bool
    traceback: str
