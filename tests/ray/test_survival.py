"""A killed worker, a killed driver, a command that is asked to stop: the run ends bit for bit where the unbroken one
does, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kdray.engine.checkpoint import checkpoints
from kdray.run.folder import RunFolder
from tests.conftest import hear_interrupts, in_order

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


def same(run, other, own=("resumed",)):
    """own: what the first one tells more."""
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
        [(row["kind"], row["step"], row.get("terms"), row.get("test")) for row in rows if row["kind"] not in own]
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


@pytest.mark.thorough
def test_a_killed_driver_is_resumed_and_nothing_is_lost(here, teacher_weights, unbroken):
    run, output = interrupted_and_resumed(here, teacher_weights, "driver-killed")
    assert "distilled student" in output
    same(run, unbroken)


@pytest.mark.thorough
def test_a_run_of_two_workers_goes_on_in_one_process(here, teacher_weights, unbroken):
    """Not bit for bit, since sums are rounded in another order, but to rounding."""
    run, _ = interrupted_and_resumed(here, teacher_weights, "fewer-workers", "--num-workers", 0)
    a, b = load_file(run.path / "student.safetensors"), load_file(unbroken.path / "student.safetensors")
    for name in a:
        if a[name].is_floating_point():
            assert (a[name] - b[name]).abs().max() < 1e-2, name


# -- asked to stop -------------------------------------------------------------------------------------------------


class Command:
    """The command line in a process of its own, whose descendants can be told by a mark in their environment."""

    def __init__(self, *args):
        self.mark = f"KDRAY_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = kdray(*args, preexec_fn=hear_interrupts, env={**os.environ, name: value})

    def end(self):
        output = self.process.communicate(timeout=600)[0]
        return self.process.returncode, output

    def left(self):
        """Its processes that still live."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                pass
        return found

    def gone(self, patience=60):
        until = time.monotonic() + patience
        while self.left() and time.monotonic() < until:
            time.sleep(0.2)
        return not self.left()


def nothing_unfinished(folder):
    assert not [p for p in folder.rglob(".*") if p.name.startswith(".writing-") or p.name == ".ray"]


@pytest.fixture
def command():
    """Makes a Command; what it leaves when a test fails is ended."""
    made = []

    def make(*args):
        made.append(Command(*args))
        return made[-1]

    yield make
    for each in made:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)


@pytest.mark.thorough
def test_two_workers_stop_at_sigterm_and_go_on(here, teacher_weights, unbroken, command):
    """With a checkpoint of just then."""
    run = RunFolder(here.path / "runs" / "stopped")
    first = command("train", config(here, "stopped", teacher_weights))
    wait_for(run, first.process, 13)
    os.kill(first.process.pid, signal.SIGTERM)
    code, output = first.end()
    assert code == 130 and "kdray resume stopped" in output and "Traceback" not in output, output
    assert run.status["state"] == "interrupted"
    kept = int(checkpoints(run.path / "checkpoints")[-1].name.removeprefix("step-"))
    assert kept == max(row["step"] for row in run.rows("step"))
    assert first.gone(), first.left()
    nothing_unfinished(run.path)

    assert command("resume", "stopped").end()[0] == 0
    assert run.rows("resumed")[-1]["step"] == kept
    same(run, unbroken, own=("resumed", "checkpoint"))


@pytest.mark.thorough
def test_a_second_interrupt_ends_at_once_and_leaves_no_process(here, teacher_weights, command):
    run = RunFolder(here.path / "runs" / "twice")
    train = command("train", config(here, "twice", teacher_weights))
    wait_for(run, train.process, 5)
    os.killpg(train.process.pid, signal.SIGINT)  # as a terminal does
    time.sleep(0.05)
    os.kill(train.process.pid, signal.SIGINT)
    code, output = train.end()
    assert code == 130 and "Traceback" not in output, output
    assert run.status["state"] == "interrupted"
    assert train.gone(), train.left()
    nothing_unfinished(run.path)
