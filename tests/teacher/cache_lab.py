"""A lab with caches, and what its tests compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.data.augment import Pipeline
from kdray.data.build import pipeline as build_pipeline
from kdray.engine.checkpoint import checkpoints
from kdray.errors import KdrayError
from kdray.launch.experiment import Experiment
from kdray.launch.precompute import Precompute
from kdray.registry import Registry
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.teacher.cache import Cache
from kdray.teacher.storage import open_storage
from tests.conftest import Lab

EXACT = {"path": "cache/here", "dtype": "fp32"}
"""A cache that loses nothing."""


class CacheLab(Lab):
    def precompute(self, name: str, *overrides: str, everything: bool = False, **changes) -> list[dict]:
        """What `kdray precompute` does, without Ray."""
        config = load_config(self.config(name, **changes), overrides, registry=self.registry).config
        return Precompute(self.registry, find_project(self.path), Console(), "test").run(config, everything)

    def refused(self, error: type[KdrayError], name: str, **changes) -> str:
        """The message of a run that does not begin, and leaves no folder."""
        with pytest.raises(error) as caught:
            self.run(name, **changes)
        assert not (self.path / "runs" / name).exists()
        return str(caught.value)

    def broken_off(self, run: RunFolder, step: int, name: str = "broken") -> RunFolder:
        """A copy of a finished run as it was after its checkpoint of this step, gone on with to its end."""
        copy = RunFolder(self.path / "runs" / f"{name}-{step}")
        shutil.copytree(run.path, copy.path)
        for path in checkpoints(copy.path / "checkpoints"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        assert checkpoints(copy.path / "checkpoints")[-1].name == f"step-{step:09d}"
        (copy.path / "student.safetensors").unlink()
        copy.set_status("interrupted")
        return self.resume(copy.name)

    def resume(self, name: str) -> RunFolder:
        run = RunFolder(self.path / "runs" / name)
        return Experiment(self.registry, find_project(self.path), Console(), "test").resume(run)

    @property
    def cache(self) -> Cache:
        """That of EXACT."""
        return Cache(open_storage("cache/here"))

    def shards(self, folder: str = "cache/here") -> list[Path]:
        return sorted((self.path / folder).rglob("*.safetensors"))

    def contents(self, folder: str = "cache/here") -> dict[str, bytes]:
        """Every file of a cache."""
        root = self.path / folder
        return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def make_pipeline(*entries, seed: int = 1, after: Pipeline | None = None) -> Pipeline:
    found = build_pipeline(list(entries), Registry.default(), seed)
    found.after = after
    return found


def terms(run: RunFolder) -> list[dict]:
    """All that a run tells of its losses."""
    return [row["terms"] for row in run.rows() if "terms" in row]


def assert_same_run(run: RunFolder, other: RunFolder) -> None:
    """Bit for bit: the student, the best student, and each term of each row."""
    assert len(terms(run)) > 3
    assert json.dumps(terms(run)) == json.dumps(terms(other))
    for file in ("student.safetensors", "best.safetensors"):
        assert (run.path / file).read_bytes() == (other.path / file).read_bytes()


def distance(run: RunFolder, other: RunFolder) -> float:
    """Between the students' weights, relative."""
    a, b = (load_file(r.path / "student.safetensors") for r in (run, other))
    a, b = (torch.cat([x.double().flatten() for _, x in sorted(w.items())]) for w in (a, b))
    return float((a - b).norm() / b.norm())
