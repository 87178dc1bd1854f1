"""A run that is asked to stop writes a checkpoint where it is, leaves nothing behind, and ends as if it had not been
asked."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from kdray.engine.checkpoint import checkpoints
from kdray.run.folder import RunFolder
from tests.conftest import hear_interrupts
from tests.ray.test_survival import SETTINGS

LONG = {**SETTINGS, "schedule": {"epochs": 4}, "checkpoint": {"every_epochs": 3}}  # no checkpoint before epoch 3


class Command:
    """The command line in a process of its own, whose descendants can be told by a mark in their environment."""

    def __init__(self, *args):
        self.mark = f"KDRAY_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdray", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
            env={**os.environ, name: value},
        )

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


def started(command, run, step):
    """Until the run has done so many steps."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        rows = run.rows("step") if run.path.exists() else []
        if rows and rows[-1]["step"] >= step:
            return
        assert command.process.poll() is None, command.process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


def nothing_unfinished(folder):
    assert not [p for p in folder.rglob(".*") if p.name.startswith(".writing-") or p.name == ".ray"]


def same(run, other):
    for file in ("student.safetensors", "best.safetensors"):
        assert (run.path / file).read_bytes() == (other.path / file).read_bytes(), file
    told = ("step", "stage", "epoch", "teacher")
    stories = [
        [(row["kind"], row["step"], row.get("terms"), row.get("test")) for row in r.rows() if row["kind"] in told]
        for r in (run, other)
    ]
    assert stories[0] == stories[1]


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


def config(lab, name, teacher_weights, workers):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    return lab.config(name, **{**LONG, "teacher": teacher, "scale": {"num_workers": workers}})


def test_two_workers_stop_at_sigterm_and_go_on(here, teacher_weights, command):
    run = RunFolder(here.path / "runs" / "stopped")
    first = command("train", config(here, "stopped", teacher_weights, 2))
    started(first, run, 13)
    os.kill(first.process.pid, signal.SIGTERM)
    code, output = first.end()
    assert code == 130 and "kdray resume stopped" in output and "Traceback" not in output, output
    assert run.status["state"] == "interrupted"
    (kept,) = checkpoints(run.path / "checkpoints")
    assert int(kept.name.removeprefix("step-")) % 10 and int(kept.name.removeprefix("step-")) % 2 == 0
    assert first.gone(), first.left()
    nothing_unfinished(run.path)

    again = command("resume", "stopped")
    whole = command("train", config(here, "whole", teacher_weights, 2))
    assert again.end()[0] == whole.end()[0] == 0
    same(run, RunFolder(here.path / "runs" / "whole"))


def test_a_second_interrupt_ends_at_once_and_leaves_no_process(here, teacher_weights, command):
    run = RunFolder(here.path / "runs" / "twice")
    train = command("train", config(here, "twice", teacher_weights, 2))
    started(train, run, 1)
    os.killpg(train.process.pid, signal.SIGINT)  # as a terminal does
    time.sleep(0.05)
    os.kill(train.process.pid, signal.SIGINT)
    code, output = train.end()
    assert code == 130 and "Traceback" not in output, output
    assert run.status["state"] == "interrupted"
    assert train.gone(), train.left()
    nothing_unfinished(run.path)
