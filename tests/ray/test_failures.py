"""What goes wrong inside a worker reaches the user as it is."""

import json

import pytest

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.errors import PluginError, RunFailed
from kdray.launch.experiment import Experiment
from kdray.registry import Registry
from kdray.run.console import Console

PLUGIN = """
import time
import torch
from kdray import Distiller, DistillerSpec, Requires, hookimpl

class Raises(Distiller):
    requires = Requires(student={"logits"})

    def forward(self, student, teacher, batch, step):
        if step.number == 3 and step.rank == 1:
            raise ValueError("the sky fell on worker 1")
        return student.logits.mean()

class Hangs(Distiller):
    requires = Requires(student={"logits"})

    def forward(self, student, teacher, batch, step):
        if step.number == 3 and step.rank == 1:
            time.sleep(1000)  # it hangs here
        return student.logits.mean()

class Drifts(Distiller):
    requires = Requires(student={"logits"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.register_buffer("seen", torch.zeros(setup.num_samples))

    def forward(self, student, teacher, batch, step):
        self.seen[batch.index] += 1  # not gathered
        return student.logits.pow(2).mean()

@hookimpl
def kdray_distillers():
    return [DistillerSpec("raises", Raises), DistillerSpec("drifts", Drifts), DistillerSpec("hangs", Hangs)]
"""


@pytest.fixture
def train(lab, ray_session):
    (lab.path / "mine.py").write_text(PLUGIN)
    (lab.path / "kdray.toml").write_text('[plugins]\nload = ["mine.py"]\n')
    registry = Registry.load(find_project(lab.path))

    def run(loss, **scale):
        file = lab.config(loss, losses={"ce": {}, loss: {}}, scale={"num_workers": 2, **scale})
        config = load_config(file, registry=registry).config
        return Experiment(registry, find_project(lab.path), Console(), "test").start(config)

    return run


def test_an_exception_of_a_loss_on_a_worker_is_its_plugins(train, lab):
    with pytest.raises(PluginError) as caught:
        train("raises")
    first, *lines = str(caught.value).splitlines()
    assert first == "loss 'raises' (Raises) failed at step 3, on worker 1:"
    assert "mine.py" in lines[-3] and lines[-1] == "ValueError: the sky fell on worker 1"
    status = json.loads((lab.path / "runs" / "raises" / "status.json").read_text())
    assert status["state"] == "failed" and "the sky fell" in status["error"]


def test_a_buffer_that_differs_between_workers_is_an_error(train):
    with pytest.raises(PluginError, match=r"loss 'drifts' \(Drifts\): its buffer seen differs between workers"):
        train("drifts")


def test_a_worker_that_hangs_is_named_with_its_place(train, lab):
    with pytest.raises(RunFailed) as caught:
        train("hangs", hang_after=8)
    first, *lines, last = str(caught.value).splitlines()
    assert first.startswith("worker 1 on ") and "hangs: no step" in first and " 8 s (scale.hang_after)" in first
    assert "mine.py" in lines[-2] and lines[-1].strip() == "time.sleep(1000)  # it hangs here"
    assert "worker-*.stack" in last
    assert "mine.py" in (lab.path / "runs" / "hangs" / "worker-1.stack").read_text()
