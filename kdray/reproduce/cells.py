"""The cells of a table as configs: one for each pair, method and seed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..config.load import digest, load_config
from ..config.schema import Config
from ..errors import ConfigError, did_you_mean
from ..registry import Registry
from .table import Table

SHARED = ("data", "schedule", "optimizer", "engine", "checkpoint")
"""Sections that an override may change: students and teachers have them alike."""


@dataclass(frozen=True)
class Cell:
    """folder: of its run, in that of the table; cells of the same work share one."""

    pair: str
    method: str
    seed: int
    folder: str
    config: Config


@dataclass(frozen=True)
class Job:
    """A part of a table that is to be run. name: of its folder among the runs. recipes: that of each teacher, by the
    file that the cells name. overrides: what is other than published."""

    name: str
    table: Table
    cells: list[Cell]
    recipes: dict[str, Config]
    overrides: tuple[str, ...] = ()

    @property
    def runs(self) -> dict[str, Cell]:
        """By run, a name beneath the folder of runs; several cells may share one."""
        return {f"{self.name}/{cell.folder}": cell for cell in self.cells}


@dataclass(frozen=True)
class Part:
    """What is asked for of a table; None: all of it."""

    pairs: str | None = None
    methods: str | None = None
    seeds: str | None = None
    overrides: tuple[str, ...] = ()


def job_of(name: str, table: Table, part: Part, configs: Path, runs: Path, registry: Registry) -> Job:
    """configs: the folder of the methods' and the teachers' configs. runs: the folder of all runs, in which a table
    has teachers' recipes of its own where there are overrides. Raises ConfigError for what is wrong with any config."""
    for override in part.overrides:
        if override.partition("=")[0].partition(".")[0] not in SHARED:
            raise ConfigError(
                f"'{override}': in a table, values of {', '.join(SHARED)} can be changed, for students and teachers "
                "alike; for others, write a table of your own"
            )
    if not re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", name):
        raise ConfigError(f"--name: '{name}' is not the name of a folder: letters, digits, '.', '_' and '-'")
    pairs = _chosen("pairs", part.pairs, list(table.pairs))
    methods = _chosen("methods", part.methods, list(table.methods))
    cells, recipes = [], {}
    for pair in pairs:
        networks = {"teacher": table.pairs[pair].teacher, "student": table.pairs[pair].student}
        given = configs / table.teacher.format(**networks)
        recipe = runs / name / "teachers" / f"{networks['teacher']}.yaml" if part.overrides else given
        recipe = str(recipe.absolute())
        for method in methods:
            if table.published(pair, method) is None:
                continue
            entry, changes = table.methods[method], []
            if not entry.is_alone:
                changes = [f"teacher.train={json.dumps(recipe)}", *(f"{k}.model={v}" for k, v in networks.items())]
                changes += [f"{path}={json.dumps(value)}" for path, value in table.pairs[pair].set.items()]
                if recipe not in recipes:
                    recipes[recipe] = load_config(given, part.overrides, registry=registry).config
            file = configs / entry.config.format(**networks)
            config = load_config(file, [*changes, *part.overrides], registry=registry).config
            if config.engine.precision == "auto":
                raise ConfigError(f"{file}: engine.precision is auto; the runs of a table have one: fp32, or bf16")
            folder = f"{method}/{networks['student']}" if entry.is_alone else f"{pair}/{method}"
            for seed in _seeds(part.seeds) or table.seeds:
                own = config.model_copy(update={"seed": seed, "baseline": False, "tune": None, "trackers": []})
                cells.append(Cell(pair, method, seed, f"{folder}-seed{seed}", own))
    if not cells:
        raise ConfigError(f"the table has no number for {', '.join(methods)} of {', '.join(pairs)}")
    return Job(name, table, cells, recipes, part.overrides)


def _chosen(kind: str, wanted: str | None, there: list[str]) -> list[str]:
    """Those of `there` that a text with commas names; all, where there is none."""
    names = there if wanted is None else [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in there:
            raise ConfigError(f"--{kind}: the table has no '{name}'.{did_you_mean(name, there)} {', '.join(there)}")
    return [name for name in there if name in names]


def _seeds(text: str | None) -> list[int]:
    try:
        found = [int(seed) for seed in text.split(",")] if text is not None else []
    except ValueError:
        found = [-1]
    if any(seed < 0 for seed in found) or len(set(found)) < len(found):
        raise ConfigError(f"--seeds wants whole numbers from 0, each once, with commas between them; not '{text}'")
    return found


def same_work(a: Config, b: Config) -> bool:
    """Whether two configs give the same result, wherever the answers of a teacher come from."""
    return digest(_without_cache(a)) == digest(_without_cache(b))


def _without_cache(config: Config) -> Config:
    if not config.teacher:
        return config
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache": None})})
