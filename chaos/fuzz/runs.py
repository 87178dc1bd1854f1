"""The files of a run folder, read by all that lists runs and goes on with them; nothing is trained."""

from __future__ import annotations

import atexit
import json
import shutil
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import yaml
from hypothesis import strategies as st

from kdray.cli.list_ import Kind, _print_table, list_rows
from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.launch.experiment import Experiment
from kdray.launch.worker import as_error, failures, final_failure, write_failure
from kdray.registry import Registry
from kdray.run.console import Console
from kdray.run.folder import RunFolder, find_run

from .damage import spoiled_bytes, spoiled_json, spoiled_tree
from .judge import Target

CONFIG = {
    "name": "one",
    "data": {"name": "digits", "batch_size": 50, "samples": 100},
    "student": {"model": "convnet", "widths": [4]},
    "losses": {"ce": {}, "kd": {}},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"epochs": 1},
    "scale": {"num_workers": 0},
}


class Quiet(Console):
    def say(self, text: str) -> None:
        pass


def _experiment(folder: Path) -> Experiment:
    return Experiment(Registry.default(), find_project(folder), Quiet(), "fuzz")


@cache
def _template() -> Path:
    """A project with a run that has a teacher of its own, both trained for real."""
    folder = Path(mkdtemp(prefix="kdray-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "teacher.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "teacher", "losses": {"ce": {}}}))
    taught = {**CONFIG, "teacher": {"model": "convnet", "widths": [4], "train": "teacher.yaml"}}
    (folder / "one.yaml").write_text(yaml.safe_dump(taught))
    run = _experiment(folder).start(load_config(folder / "one.yaml").config)
    run.set_status("interrupted", error="interrupted")
    write_failure(run.path, 0, ValueError("no"))
    return folder


def _read(given: tuple[str, bytes], folder: Path) -> None:
    name, data = given
    shutil.rmtree(folder / "runs", ignore_errors=True)
    shutil.copytree(_template() / "runs", folder / "runs")
    (folder / "teacher.yaml").write_bytes((_template() / "teacher.yaml").read_bytes())
    run = RunFolder(folder / "runs" / "one")
    (run.path / name).write_bytes(data)
    with redirect_stdout(StringIO()):
        rows, _ = list_rows(Kind.runs)
        _print_table(rows)
    failures(run.path)
    as_error(final_failure(run.path)) if final_failure(run.path) else None
    with patch.object(Experiment, "_train"):  # all before it and after it
        _experiment(folder).resume(find_run("one", folder / "runs"))


def _spoiled(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
    file = _template() / "runs" / "one" / name
    data = file.read_bytes()
    if name.endswith(".json"):
        return spoiled_json([json.loads(data)]).map(lambda spoiled: (name, spoiled))
    if name.endswith(".jsonl"):
        rows = spoiled_tree([[json.loads(line) for line in data.splitlines()]], most=3)
        lines = rows.map(
            lambda rows: "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows]))
        )
        return st.one_of(spoiled_bytes([data]), lines.map(str.encode)).map(lambda spoiled: (name, spoiled))
    return spoiled_bytes([data]).map(lambda spoiled: (name, spoiled))


FILES = [
    "status.json",
    "metrics.jsonl",
    "data.json",
    "teachers.json",
    "environment.json",
    "summary.json",
    "config.yaml",
]
FILES += ["progress.json", "command.txt", "student.safetensors", "failures/rank-0.json"]
TARGETS = [
    Target(
        f"run: {name}",
        st.deferred(lambda name=name: _spoiled(name)),
        _read,
        ("runs/one", "this run began with", "when one began", "teacher.train"),
        share=0.1,
    )
    for name in FILES
]
