"""What many tests need: small configs on digits, and runs of them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import yaml

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.launch.experiment import Experiment
from kdray.registry import Registry
from kdray.run.console import Console
from kdray.run.folder import RunFolder

ROOT = Path(__file__).parent.parent

SMALL = {
    "name": "small",
    "data": {"name": "digits", "batch_size": 32, "samples": 160, "augment": [{"crop": {"padding": 1}}]},
    "student": {"model": "convnet", "widths": [4, 8]},
    "losses": {"ce": {}},
    "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 5e-4},
    "schedule": {"epochs": 2},
    "scale": {"num_workers": 0},
}


WHOLE = ("losses", "student", "teacher", "extra_views")  # given anew as a whole


def merged(base: dict, changes: dict) -> dict:
    out = dict(base)
    for key, value in changes.items():
        out[key] = (
            merged(out[key], value)
            if isinstance(value, dict) and isinstance(out.get(key), dict) and key not in WHOLE
            else value
        )
    return out


class Lab:
    """A folder of its own for configs and runs."""

    def __init__(self, path: Path):
        self.path, self.registry = path, Registry.default()

    def config(self, name: str, **changes) -> Path:
        file = self.path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(merged(SMALL, {"name": name, **changes}), sort_keys=False))
        return file

    def run(self, name: str, *overrides: str, **changes) -> RunFolder:
        """Train to the end, in this process's Ray session or without Ray."""
        config = load_config(self.config(name, **changes), overrides, registry=self.registry).config
        return Experiment(self.registry, find_project(self.path), Console(), "test").start(config)


@pytest.fixture(scope="session", autouse=True)
def frozen_imports():
    """Each run collects garbage; what was imported by now is not looked through every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory) -> str:
    """A convnet [16, 32] that knows its digits."""
    lab = Lab(tmp_path_factory.mktemp("teacher"))
    run = lab.run(
        "teacher",
        data={"samples": 1000, "batch_size": 50},
        student={"model": "convnet", "widths": [16, 32]},
        schedule={"epochs": 15, "name": "cosine"},
        optimizer={"lr": 0.1},
        run={"dir": str(lab.path)},
    )
    assert run.summary["last"]["top1"] > 0.85
    return str(run.path / "student.safetensors")
