"""A run whose number of workers follows the cluster: a node is lost and another comes, and the losses are those of one
process."""

from __future__ import annotations

import threading

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.launch import elastic
from kdray.launch.experiment import Experiment
from kdray.launch.session import RaySession
from kdray.registry import Registry
from kdray.run.asking import ask
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from tests.conftest import Lab
from tests.ray.clusters import cluster, wait_until

PATIENT = '''
"""Adds nothing; takes its time until it may go on."""

import time
from pathlib import Path

from kdray import Distiller, DistillerSpec, hookimpl


class Patient(Distiller):
    def forward(self, student, teacher, batch, step):
        if not Path({go!r}).exists():
            time.sleep(0.1)
        return {{}}


@hookimpl
def kdray_distillers():
    return [DistillerSpec("patient", Patient)]
'''


class Heard(Console):
    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text.strip())


@pytest.mark.thorough
def test_a_node_is_lost_and_another_comes_and_the_losses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "patient.py").write_text(PATIENT.format(go=str(tmp_path / "go")))
    lab = Lab(tmp_path)
    lab.registry = Registry.load(paths=[tmp_path / "patient.py"])
    settings = {
        "data": {"samples": 100, "batch_size": 20},
        "losses": {"ce": {}, "patient": {}},
        "engine": {"precision": "fp64"},
        "schedule": {"epochs": 60},
        "checkpoint": {"every_epochs": 3},
    }
    elastically = ["scale.num_workers=1..2", "scale.max_failures=9"]  # a busy machine may lose more than the node
    config = load_config(lab.config("elastic", **settings), elastically, registry=lab.registry).config
    run = RunFolder(tmp_path / "runs" / "elastic")

    asked_at = []  # the last epoch before a checkpoint was asked for
    monkeypatch.setattr(elastic, "ask", lambda *what: asked_at.append(run.rows("epoch")[-1]["step"]) or ask(*what))

    def sizes():
        return [row["workers"] for row in run.rows("epoch")] if run.path.exists() else []

    def kept():
        """An epoch of two workers stands before a checkpoint: else it would go with the node."""
        of_two = [row["step"] for row in run.rows("epoch") if row["workers"] == 2] if run.path.exists() else []
        return of_two and run.rows("checkpoint") and run.rows("checkpoint")[-1]["step"] >= of_two[0]

    with cluster() as made, RaySession(made.address):
        nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        made.wait_for_nodes()
        experiment = Experiment(lab.registry, find_project(tmp_path), Heard(), "test", made.address)
        # Not in the main thread: nodes can be made only there.
        thread = threading.Thread(target=experiment.start, args=[config], daemon=True)
        thread.start()
        wait_until(lambda: kept() and sizes()[-1] == 2, "a checkpoint of two workers", 300)
        made.remove_node(nodes[1])
        wait_until(lambda: sizes()[-1:] == [1], "an epoch of one worker", 300)
        made.add_node(num_cpus=1)
        wait_until(lambda: sizes()[-1:] == [2], "an epoch of two workers again", 300)
        (tmp_path / "go").touch()
        thread.join(300)

    assert run.finished, run.status
    assert [n for n, before in zip(sizes(), [0, *sizes()]) if n != before][-3:] == [2, 1, 2]
    lost, *went_on = [line for line in experiment.console.lines if "worker" in line][-3:]
    assert "workers were lost" in lost and went_on == ["going on with 1 worker", "going on with 2 workers"]
    # The larger group went on from a checkpoint of just then.
    assert run.rows("resumed")[-1]["step"] >= asked_at[-1]

    plain = lab.run("plain", **settings)
    for ours, theirs in zip(run.rows("epoch"), plain.rows("epoch"), strict=True):
        assert ours["terms"] == pytest.approx(theirs["terms"], rel=1e-6), f"epoch {ours['epoch']}"
    a, b = (load_file(each.path / "student.safetensors") for each in (run, plain))
    for name in a:
        assert_close(a[name], b[name], rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
