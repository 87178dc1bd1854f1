"""A killed worker, a killed driver: the run ends bit for bit where the unbroken one does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from kdray.engine.checkpoint import checkpoints
from kdray.run.folder import RunFolder
from tests.conftest import in_order

SETTINGS = {
    "data": {"samples": 300, "batch_size": 30},
    "student": {"model": "resnet8"},
    "losses": {
        "ce": {},
        "kd": {"temperature": 2.0},
        "crd": {"dim": 16, "weight": 0.1, "negatives": {"kind": "bank", "count": 40}},
        "queue": {"use": "crd", "dim": 16, "weight": 0.1, "negatives": {"kind": "queue", "count": 64}},
    },
    "schedule": {"epochs": 3},
    "engine": {"ema": 0.9, "accumulate": 2, "log_every": 1},
    "checkpoint": {"every_steps": 4},  # 10 steps an epoch: checkpoints fall inside epochs
    "scale": {"num_workers": 2},
}


def config(lab, name, teacher_weights):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    return lab.config(name, **SETTINGS, teacher=teacher)


def kdray(*args, **more):
    # A session of its own, so that the driver can be killed with everything that belongs to it, or alone.
    return subprocess.Popen(
        [sys.executable, "-m", "kdray", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **more,
    )


def wait_for(run: RunFolder, process, step):
    """Until the run has a checkpoint, and has gone some steps beyond."""
    for _ in range(6000):
        rows = run.rows() if run.path.exists() else []
        kept = [row["step"] for row in rows if row["kind"] == "checkpoint"]
        if kept and max(row["step"] for row in rows) > step and step > kept[0]:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


@pytest.fixture
def unbroken(here, teacher_weights):
    run = RunFolder(here.path / "runs" / "unbroken")
    if not run.finished:
        process = kdray("train", config(here, "unbroken", teacher_weights))
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output
    return run


def same(run, other):
    assert run.finished, run.status
    assert load_file(run.path / "student.safetensors").keys() == load_file(other.path / "student.safetensors").keys()
    for file in ("student.safetensors", "best.safetensors"):
        assert (run.path / file).read_bytes() == (other.path / file).read_bytes(), file
    ours, theirs = (checkpoints(r.path / "checkpoints")[-1] for r in (run, other))
    assert ours.name == theirs.name
    for file in ("student", "ema", "distillers"):
        assert (ours / f"{file}.safetensors").read_bytes() == (theirs / f"{file}.safetensors").read_bytes(), file
    # And it tells the same story, each row once.
    stories = [
        [(row["kind"], row["step"], row.get("terms"), row.get("test")) for row in rows if row["kind"] != "resumed"]
        for rows in (in_order(r.rows()) for r in (run, other))
    ]
    assert stories[0] == stories[1]


def test_a_killed_worker_is_replaced_and_nothing_is_lost(here, teacher_weights, unbroken):
    run = RunFolder(here.path / "runs" / "worker-killed")
    process = kdray("train", config(here, "worker-killed", teacher_weights))
    wait_for(run, process, 15)
    victim = json.loads((run.path / "worker-1.json").read_text())["pid"]
    os.kill(victim, signal.SIGKILL)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert json.loads((run.path / "worker-1.json").read_text())["pid"] != victim
    same(run, unbroken)


def interrupted_and_resumed(here, teacher_weights, name, *flags):
    """A run whose driver is killed inside an epoch, and which `kdray resume` takes to its end: the run, and what that
    printed."""
    run = RunFolder(here.path / "runs" / name)
    process = kdray("train", config(here, name, teacher_weights))
    wait_for(run, process, 15)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run.status["state"] == "running" and run.state == "died"
    again = kdray("resume", name, *flags)
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output
    return run, output


def test_a_killed_driver_is_resumed_and_nothing_is_lost(here, teacher_weights, unbroken):
    run, output = interrupted_and_resumed(here, teacher_weights, "driver-killed")
    assert "distilled student" in output
    same(run, unbroken)


def test_a_run_of_two_workers_goes_on_in_one_process(here, teacher_weights, unbroken):
    """Not bit for bit, since sums are rounded in another order, but to rounding."""
    run, _ = interrupted_and_resumed(here, teacher_weights, "fewer-workers", "--num-workers", 0)
    a, b = load_file(run.path / "student.safetensors"), load_file(unbroken.path / "student.safetensors")
    for name in a:
        if a[name].is_floating_point():
            assert (a[name] - b[name]).abs().max() < 1e-2, name
