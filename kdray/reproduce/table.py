"""A published table as data: pairs of teacher and student, methods, and a number for each of both."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..config.explain import explain
from ..config.schema import Name
from ..config.yaml import Problem, dotted, read
from ..errors import ConfigError, did_you_mean
from ..options import Options

Percent = Annotated[float, Field(ge=0, le=100)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Pair(Options):
    teacher: str = Field(description="Network of the teacher.")
    student: str = Field(description="Network of the student.")
    published: Percent | None = Field(None, description="The teacher's accuracy, per cent.")
    set: dict[str, Any] = Field({}, description="Values for the config of each method, by dotted path.")


class Method(Options):
    config: str = Field(
        description="Its config, beneath the folder of configs; `{student}` and `{teacher}` stand for the networks."
    )
    published: list[Percent | None] = Field(
        description="Accuracies, per cent, in the order of the pairs; null where the table has no such cell."
    )

    @property
    def is_alone(self) -> bool:
        """Whether it is the recipe of a network by itself, which learns from no teacher of the pair's."""
        return "{student}" in self.config


class Table(Options):
    title: str
    source: str = Field(description="Where the numbers were published.")
    epoch: Literal["last", "best"] = Field(description="Of which epoch the published accuracies are.")
    seeds: Annotated[list[Seed], Field(min_length=1)]
    pairs: Annotated[dict[Name, Pair], Field(min_length=1)]
    teacher: str = Field(description="The config that trains a teacher, beneath the folder of configs.")
    methods: Annotated[dict[Name, Method], Field(min_length=1)]

    @model_validator(mode="after")
    def whole(self):
        for name, method in self.methods.items():
            if len(method.published) != len(self.pairs):
                raise ValueError(
                    f"methods.{name}: published has {len(method.published)} numbers for {len(self.pairs)} pairs"
                )
        return self

    def published(self, pair: str, method: str) -> float | None:
        """Per cent; None where the table has no such cell."""
        return self.methods[method].published[list(self.pairs).index(pair)]


def known() -> list[str]:
    """Names of the tables that come with kdray."""
    return sorted(file.name.removesuffix(".yaml") for file in files(__package__).iterdir() if file.name[-5:] == ".yaml")


def find_table(name: str) -> tuple[str, Table]:
    """A table that comes with kdray, by its name, or that of a file; and what it is called. Raises ConfigError."""
    if name in known():
        return name, _parse(files(__package__).joinpath(f"{name}.yaml").read_bytes(), f"{name}.yaml")
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"there is no table '{name}'.{did_you_mean(name, known())} kdray has {', '.join(known())}; "
            "the name of a file is taken, too"
        )
    return path.stem, _parse(path.read_bytes(), name)


def _parse(text: bytes, file: str) -> Table:
    doc = read(text, file)
    problems = list(map(str, doc.problems))
    if not problems and not isinstance(doc.value, dict):
        problems = [f"{file}: a table is a mapping of keys to values"]
    if not problems:
        try:
            return Table.model_validate(doc.value)
        except ValidationError as error:
            for fault in explain(error, Table, doc.value):
                mark = next((doc.values[at] for at in _upwards(fault.path) if at in doc.values), file)
                problems.append(str(Problem(mark, dotted(fault.concerns), fault.text)))
    raise ConfigError("\n".join(problems))


def _upwards(path: tuple):
    """A path, and all that it lies in."""
    return (path[:i] for i in range(len(path), -1, -1))
