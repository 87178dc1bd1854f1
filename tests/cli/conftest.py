"""The command line in this process: what it prints, and how it exits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import run_command

SMALL = {
    "name": "small",
    "data": {"name": "digits", "batch_size": 50, "samples": 100},
    "student": {"model": "convnet", "widths": [4]},
    "losses": {"ce": {}},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"epochs": 1},
    "scale": {"num_workers": 0},
}


@dataclass
class Result:
    code: int
    out: str
    err: str


@dataclass
class Desk:
    """A user's folder, and the command line in it."""

    path: Path
    command: Callable[..., Result]

    def __call__(self, *arguments) -> Result:
        return self.command(*map(str, arguments))

    def config(self, file: str = "small.yaml", **changes) -> str:
        """A small config with whole sections replaced; None removes one."""
        value = {**copy.deepcopy(SMALL), **changes}
        return self.write(file, yaml.safe_dump({k: v for k, v in value.items() if v is not None}, sort_keys=False))

    def edited(self, old: str, new: str, file: str = "edited.yaml") -> str:
        """The small config with a piece of its text replaced."""
        text = "\n".join(f"{key}: {_flow(section)}" for key, section in SMALL.items()) + "\n"
        assert text.count(old) == 1, text
        return self.write(file, text.replace(old, new))

    def write(self, file: str, text: str) -> str:
        (self.path / file).parent.mkdir(parents=True, exist_ok=True)
        (self.path / file).write_text(text)
        return file

    def trained(self, *overrides: str, name: str = "base") -> Path:
        """The folder of a run that is done."""
        result = self("train", self.config("base.yaml"), "--name", name, *overrides)
        assert result.code == 0, result.err
        return self.path / "runs" / name

    def refused(self, *arguments, code: int = 2) -> str:
        """The message of a command that fails, plainly, and leaves no run behind."""
        before = self.runs()
        result = self(*arguments)
        assert result.code == code, result.err
        assert "Traceback" not in result.err
        assert self.runs() == before
        return result.err

    def runs(self) -> list[str]:
        folder = self.path / "runs"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _flow(section) -> str:
    return yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n").strip()


@pytest.fixture
def desk(tmp_path, monkeypatch, capfd) -> Desk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> Result:
        return Result(run_command(monkeypatch, *arguments), *capfd.readouterr())

    return Desk(tmp_path, command)
