"""`kdray reproduce` with real runs of a small table on digits."""

import json
import os
import threading
import time

import pytest
import yaml

from kdray.cli.runs import brief
from kdray.config.project import find_project
from kdray.config.tune import TuneConfig
from kdray.errors import ConfigError, MismatchError, Stopped
from kdray.launch.reproduce import Reproduce
from kdray.reproduce.cells import Part, job_of
from kdray.reproduce.table import find_table
from kdray.run.asking import STOP, ask
from kdray.run.console import Console
from kdray.run.folder import RunFolder, find_run, list_runs
from tests.conftest import SMALL, merged

TABLE = """
title: digits
source: this test
epoch: last
seeds: [0]
pairs:
  big-small: {teacher: convnet, student: convnet, published: 90.0}
teacher: big.yaml
methods:
  alone: {config: '{student}.yaml', published: [50.0]}
  kd: {config: kd.yaml, published: [60.0]}
  at: {config: at.yaml, published: [60.0]}
  wild: {config: wild.yaml, published: [60.0]}
  misfit: {config: misfit.yaml, published: [60.0]}
"""


@pytest.fixture(scope="module")
def reproduce(folder):
    """reproduce(overrides, …): a part of the table, planned and carried out."""
    (folder / "own.yaml").write_text(TABLE)
    student = {"model": "convnet", "widths": [16, 32]}
    teacher = {"model": "convnet", "widths": [16, 32], "train": "big.yaml"}
    for name, changes in {
        "convnet": {"student": student},
        "big": {"student": student, "schedule": {"epochs": 6}, "data": {"samples": 600}},
        "kd": {"teacher": teacher, "student": student, "losses": {"ce": {}, "kd": {}}},
        "at": {"teacher": teacher, "student": student, "losses": {"ce": {}, "at": {}}},
        "wild": {"teacher": teacher, "student": student, "losses": {"kd": {}}, "optimizer": {"lr": 1e30}},
        "misfit": {"teacher": teacher, "student": student, "losses": {"ce": {}, "hint": {"layer": 99}}},
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(merged(SMALL, {"name": name, **changes}), sort_keys=False))

    def call(registry, only_plan=False, name="own", **part):
        _, found = find_table(str(folder / "own.yaml"))
        project = find_project(folder)
        job = job_of(name, found, Part(**part), folder, project.runs, registry)
        experiment = Reproduce(registry, project, Console(), "test")
        plan = experiment.plan(job)
        return plan.summary() if only_plan else experiment.start(plan, TuneConfig(max_concurrent=2))

    return call


def test_a_table(here, reproduce, ray_session):
    """Each cell is a run, a failed one says why and ends no other, teachers are trained once and their answers shared;
    given again, with more, what is finished stays."""
    plan = reproduce(here.registry, only_plan=True)
    assert (plan["runs"], plan["left"], plan["teachers"], plan["finished"]) == (5, 4, 1, 0)
    assert "no map 99" in plan["failed"]["own/big-small/misfit-seed0"]
    assert plan["epochs"] == 4 * 2 + 6 and plan["pictures"] == 4 * 2 * 160 + 6 * 600
    assert not (here.path / "runs").exists()

    found = {cell["method"]: cell for cell in reproduce(here.registry)["cells"]}
    assert list(found) == ["teacher", "alone", "kd", "at", "wild", "misfit"]
    for method in ("teacher", "alone", "kd", "at"):
        assert len(found[method]["last"]) == 1 and found[method]["difference"] is not None
    assert "not a finite number" in found["wild"]["failed"][0] and "no map 99" in found["misfit"]["failed"][0]
    runs = here.path / "runs"
    kd, at = (RunFolder(runs / "own" / "big-small" / f"{name}-seed0") for name in ("kd", "at"))
    assert found["kd"]["last"] == [100 * kd.summary["last"]["top1"]]
    assert kd.summary["teacher"]["run"] == at.summary["teacher"]["run"]
    assert len(list(runs.glob("big-*"))) == 1
    # kd reads the logits, which are stored; at reads maps, which no cache holds.
    assert [path.name for path in (here.path / "cache").glob("convnet-digits-*")]
    assert "cache: null" in at.config_file.read_text() and "cache: null" not in kd.config_file.read_text()
    assert json.loads((runs / "own" / "table.json").read_text())["cells"] and not (runs / "own" / ".ray").exists()

    began = os.stat(kd.path / "summary.json").st_mtime_ns
    at.set_status("interrupted")  # as if it had been stopped after its last checkpoint
    again = {cell["method"]: cell for cell in reproduce(here.registry, methods="alone,kd,at", seeds="0,1")["cells"]}
    assert os.stat(kd.path / "summary.json").st_mtime_ns == began
    assert at.finished and len(at.rows("epoch")) == 2
    assert all(len(again[method]["last"]) == 2 for method in ("alone", "kd", "at"))
    assert again["kd"]["last"][0] == found["kd"]["last"][0] and again["at"]["last"][0] == found["at"]["last"][0]

    with pytest.raises(MismatchError, match="begun with other values"):
        reproduce(here.registry, only_plan=True, methods="alone", overrides=("schedule.epochs=3",))


@pytest.mark.thorough
def test_a_table_that_is_asked_to_stop(here, reproduce, ray_session):
    part = {"name": "long", "methods": "alone", "seeds": "0,1,2", "overrides": ("schedule.epochs=60",)}
    table, first = (RunFolder(here.path / "runs" / name) for name in ("long", "long/alone/convnet-seed0"))

    def stop():
        while len(first.rows("epoch")) < 5:
            time.sleep(0.02)
        ask(table.path, STOP)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped):
        reproduce(here.registry, **part)
    assert table.state == "interrupted" and table.is_what == "table" and table.how_to_resume == "test"
    assert not first.finished and first.status["state"] == "running" and not first.is_alive
    (row,) = [row for row in list_runs(table.path.parent) if row["name"] == "long"]
    assert brief(row)["at"] == f"table, runs: {row['parts']}" and 0 < row["parts"] < 3
    with pytest.raises(ConfigError, match="long is a table, not a run: `test` goes on with it"):
        find_run("long", table.path.parent)

    (cell,) = [cell for cell in reproduce(here.registry, **part)["cells"] if cell["method"] == "alone"]
    assert len(cell["last"]) == 3 and table.finished
    assert [row["epoch"] for row in first.rows("epoch")] == list(range(1, 61))
    assert first.rows("resumed")[-1]["step"] > 0
