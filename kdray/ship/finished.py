"""Finished runs as a report reads them: alone, and grouped by recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..config.load import digest, load_config
from ..config.schema import Config
from ..errors import ConfigError
from ..registry import Registry
from ..run.folder import RunFolder, read_json
from ..run.forms import Epoch, Summary, Teachers


@dataclass(frozen=True)
class Finished:
    """A run with everything that it left. epochs: its rows of metrics.jsonl, one an epoch."""

    run: RunFolder
    config: Config
    summary: dict
    epochs: list[dict]

    @classmethod
    def read(cls, run: RunFolder, registry: Registry) -> Finished:
        """Raises ConfigError for a run that is not finished, or of which a file is damaged."""
        if not run.finished:
            raise ConfigError(
                f"{run.name} is not finished (its state: {run.state}), and what is asked for is of finished runs: "
                f"`{run.how_to_resume}` goes on with it"
            )
        summary = read_json(run.path / "summary.json")
        epochs = run.rows("epoch")
        for file, form, values in (("summary.json", Summary, [summary]), ("metrics.jsonl", Epoch, epochs)):
            try:
                for value in values:
                    form.model_validate(value)
            except ValidationError as error:
                what = ".".join(map(str, error.errors()[0]["loc"]))
                raise ConfigError(
                    f"{run.path / file} is damaged{f' (at {what})' if what else ' or absent'}, though the run is "
                    "finished. Put it back from a copy, or train the run again"
                ) from None
        if not epochs:
            raise ConfigError(f"{run.path / 'metrics.jsonl'} is damaged or absent: it holds no epoch")
        run.weights()
        return cls(run, load_config(run.config_file, registry=registry).config, summary, epochs)

    @property
    def recipe(self) -> tuple[str, str]:
        """Equal for runs that differ by the seed alone."""
        return digest(self.config.model_copy(update={"seed": 0})), self.run.data

    @property
    def alone(self) -> RunFolder | None:
        """The run of its student without a teacher, where the config asked for one."""
        alone = self.summary.get("alone")
        return RunFolder(self.run.path.parent / alone["name"]) if alone else None

    def teacher_weights(self, name: str) -> Path:
        """Raises ConfigError where they are in no file that is there."""
        section = self.config.all_teachers[name]
        remembered = read_json(self.run.path / "teachers.json", Teachers) or {}
        file = remembered.get(name, {}).get("checkpoint") if section.train else section.checkpoint
        if file is None:
            why = "teachers.json is damaged or absent" if section.train else f"they are the published {section.weights}"
            raise ConfigError(f"no file of its weights is known: {why}")
        return Path(file).expanduser()


@dataclass(frozen=True)
class Method:
    """Runs that differ by the seed alone."""

    label: str
    runs: list[Finished]


def methods_of(runs: Iterable[Finished]) -> list[Method]:
    """Grouped by recipe, in the order of their first runs, each with a label of its own."""
    groups: dict[tuple, list[Finished]] = {}
    for one in runs:
        groups.setdefault(one.recipe, []).append(one)
    methods: dict[str, Method] = {}
    for group in groups.values():
        name = label = group[0].config.name if len(group) > 1 else group[0].run.name
        number = 1
        while label in methods:
            number += 1
            label = f"{name} ({number})"
        methods[label] = Method(label, group)
    return list(methods.values())
