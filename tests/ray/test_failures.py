"""What goes wrong inside a worker reaches the user as it is."""

import json

import pytest
import torch
from safetensors.torch import load_file

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


LOSES = """
import torch
from kdray import Distiller, DistillerSpec, Requires, hookimpl

class Loses(Distiller):
    requires = Requires(student={"logits"})

    def forward(self, student, teacher, batch, step):
        lost = step.rank == step.world_size - 1 and step.number in (1, 4)
        return student.logits.pow(2).mean() * (float("nan") if lost else 1)

@hookimpl
def kdray_distillers():
    return [DistillerSpec("loses", Loses)]
"""


@pytest.mark.thorough
def test_a_batch_whose_loss_is_no_number_for_one_worker_is_left_out_by_all(lab, ray_session):
    (lab.path / "mine.py").write_text(LOSES)
    (lab.path / "kdray.toml").write_text('[plugins]\nload = ["mine.py"]\n')
    lab.registry, ends = Registry.load(find_project(lab.path)), []
    for workers in (0, 2):
        engine = {"nonfinite": "skip", "precision": "fp64", "log_every": 1}
        scale = {"num_workers": workers}
        run = lab.run(f"workers-{workers}", losses={"ce": {}, "loses": {}}, engine=engine, scale=scale)
        skipped = run.rows("skipped")
        assert [(row["step"], row["terms"], len(row["samples"])) for row in skipped] == [
            (2, ["loses"], 32),
            (5, ["loses"], 32),
        ]
        assert run.summary["skipped"] == 2 and run.rows("epoch")[-1]["skipped"] == 2
        assert [row["step"] for row in run.rows("step")] == [1, 3, 4, 6, 7, 8, 9, 10]
        ends.append(load_file(run.path / "student.safetensors"))
    for name, value in ends[0].items():
        assert value.isfinite().all() if value.is_floating_point() else True
        torch.testing.assert_close(ends[1][name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.thorough
def test_a_worker_that_hangs_is_named_with_its_place(train, lab):
    with pytest.raises(RunFailed) as caught:
        train("hangs", hang_after=8)
    first, *lines, last = str(caught.value).splitlines()
    assert first.startswith("worker 1 on ") and "hangs: no step" in first and " 8 s (scale.hang_after)" in first
    assert "mine.py" in lines[-2] and lines[-1].strip() == "time.sleep(1000)  # it hangs here"
    assert "worker-*.stack" in last
    assert "mine.py" in (lab.path / "runs" / "hangs" / "worker-1.stack").read_text()
