"""Checkpoints are written while the training goes on: what is in them, when they are told, and what goes wrong."""

import copy
import errno
import json
import os
import signal
import threading
import time
import traceback

import pytest
import torch

from kdray.config.project import find_project
from kdray.engine import checkpoint
from kdray.engine.checkpoint import checkpoints
from kdray.engine.train import Training
from kdray.engine.writer import Writer, copied
from kdray.errors import PluginError, RunFailed
from kdray.launch.experiment import Experiment
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.run.metrics import FileLog

# 5 steps an epoch, checkpoints after steps 2, 4, 5, 6, 8 and 10: that of step 4 waits for that of step 2.
SETTINGS = {
    "losses": {
        "ce": {},
        "crd": {"dim": 16, "weight": 0.1, "negatives": {"kind": "bank", "count": 40}},
    },
    "optimizer": {"momentum": 0.9},
    "engine": {"ema": 0.9, "log_every": 1},
    "checkpoint": {"every_steps": 2, "keep": 99},
}
PATIENCE = 60


@pytest.fixture
def train(lab, teacher):
    return lambda name, **changes: lab.run(name, **{**SETTINGS, **changes}, teacher=teacher)


@pytest.fixture
def went_on(monkeypatch):
    """An Event: a step was trained after the first checkpoint began to be written."""
    begun, gone_on, begin, step = threading.Event(), threading.Event(), Writer.begin, Training._log_step

    def tell_begin(self, *what):
        begin(self, *what)
        begun.set()

    def tell_step(self, *what):
        step(self, *what)
        if begun.is_set():
            gone_on.set()

    monkeypatch.setattr(Writer, "begin", tell_begin)
    monkeypatch.setattr(Training, "_log_step", tell_step)
    return gone_on


def slowly(monkeypatch, went_on):
    """No checkpoint is written before a step has been trained beyond it (but where nothing follows)."""
    save = checkpoint.save

    def wait(run, counters, *more):
        if counters.step == 2:
            assert went_on.wait(PATIENCE)
        return save(run, counters, *more)

    monkeypatch.setattr(checkpoint, "save", wait)


def content(path):
    counters, tensors, optimizer = checkpoint.load(path, json.loads((path / "state.json").read_text())["digest"])
    counters.seconds = 0
    return counters, tensors, optimizer


def told(run):
    return [(row["kind"], row["step"]) for row in run.rows()]


def test_a_checkpoint_is_that_of_its_step_though_training_went_on(train, monkeypatch, went_on):
    with monkeypatch.context() as patch:
        slowly(patch, went_on)
        beside = train("beside")
    begin = Writer.begin

    def and_wait(self, *what):
        begin(self, *what)
        self.thread.join()

    monkeypatch.setattr(Writer, "begin", and_wait)
    between = train("between")
    ours, theirs = (checkpoints(run.path / "checkpoints") for run in (beside, between))
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == 6
    for a, b in zip(ours, theirs):
        (a, states, memory), (b, others, other_memory) = content(a), content(b)
        assert a == b
        torch.testing.assert_close(states, others, rtol=0, atol=0)
        torch.testing.assert_close(memory, other_memory, rtol=0, atol=0)
        assert {"student", "distillers", "ema"} <= states.keys() and memory["state"]


def test_rows_are_told_when_the_checkpoint_is_on_disk(train, monkeypatch, went_on):
    slowly(monkeypatch, went_on)
    rows = told(train("run"))
    written = [row for row in rows if row[0] == "checkpoint"]
    assert written == [("checkpoint", step) for step in (2, 4, 5, 6, 8, 10)]
    place = rows.index
    assert place(("step", 3)) < place(("checkpoint", 2)) < place(("checkpoint", 4)) < place(("epoch", 5))
    assert place(("epoch", 5)) < place(("checkpoint", 5)) < place(("epoch", 10)) < place(("checkpoint", 10))
    assert len(rows) == len(set(rows)) == 10 + 2 + 6 + 1  # steps, epochs, checkpoints, the teacher


def test_the_best_student_in_a_checkpoint_is_the_best_as_of_then(train, monkeypatch):
    """Also where it is written so slowly that the next epoch is over, and evaluated."""
    save, evaluate, written = checkpoint.save, Training._evaluate, Writer.written
    evaluated, waited_for, best = threading.Event(), threading.Event(), []

    def slow(run, counters, *more):
        assert counters.epoch != 1 or waited_for.wait(PATIENCE)
        path = save(run, counters, *more)
        best.append((path / "best.safetensors").read_bytes())
        return path

    def rising(self, *what):
        result = evaluate(self, *what)
        if self.counters.epoch == 2:
            evaluated.set()
        return {**result, "top1": self.counters.epoch / 10}

    def wait(self, wait=False):
        if wait and evaluated.is_set():
            waited_for.set()
        return written(self, wait)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(Training, "_evaluate", rising)
    monkeypatch.setattr(Writer, "written", wait)
    run = train("run", checkpoint={"keep": 99})
    assert [(row["step"], row["best"]["epoch"]) for row in run.rows("epoch")] == [(5, 1), (10, 2)]
    first, last = best
    assert first != last == (run.path / "best.safetensors").read_bytes()


def fails(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", [2, 5, 10])
def test_what_stops_the_writer_ends_the_run(train, monkeypatch, step):
    """In an epoch, at its end, and at the end of all."""
    save = checkpoint.save

    def full(run, counters, *more):
        if counters.step == step:
            monkeypatch.setattr(checkpoint, "sha256_of", fails)
        return save(run, counters, *more)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(RunFailed, match=rf"step-0000000{step:02d} could not be written: .*No space left on device"):
        train("run")
    run = RunFolder(find_project().root / "runs" / "run")
    assert run.status["state"] == "failed" and "could not be written" in run.status["error"]
    assert ("checkpoint", step) not in told(run) and not list(run.path.glob("checkpoints/.writing-*"))
    assert not (run.path / "student.safetensors").exists()


@pytest.mark.parametrize("also", ["", "not written", "ended by who is told"])
def test_an_error_of_the_training_is_told_whatever_comes_of_the_writer(train, monkeypatch, also):
    """And the checkpoint that was being written is there. Ray Tune may end a trial when it is told of one."""
    save, log_step, failed, note = checkpoint.save, Training._log_step, threading.Event(), FileLog.row

    def slow(run, counters, *more):
        assert failed.wait(PATIENCE)
        if also == "not written":
            monkeypatch.setattr(checkpoint, "sha256_of", fails)
        return save(run, counters, *more)

    def leave(self, row):
        note(self, row)
        if also == "ended by who is told" and row["kind"] == "checkpoint":
            raise SystemExit

    def fail(self, *what):
        log_step(self, *what)
        if self.counters.step == 3:
            failed.set()
            raise PluginError("the sky fell")

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(FileLog, "row", leave)
    monkeypatch.setattr(Training, "_log_step", fail)
    with pytest.raises(PluginError, match="the sky fell"):
        train("run")
    run = RunFolder(find_project().root / "runs" / "run")
    assert [path.name for path in checkpoints(run.path / "checkpoints")] == (
        [] if also == "not written" else ["step-000000002"]
    )
    assert (("checkpoint", 2) in told(run)) is (also != "not written")


def test_an_interrupt_abandons_what_is_being_written(train, monkeypatch):
    flush, log_step, writing = checkpoint._flush, Training._log_step, threading.Event()

    def slow(file):
        writing.set()
        for _ in range(100 * PATIENCE):  # until somebody ends it
            time.sleep(0.01)
        flush(file)

    def interrupt(self, *what):
        log_step(self, *what)
        if self.counters.step == 3:
            assert writing.wait(PATIENCE)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_flush", slow)
    monkeypatch.setattr(Training, "_log_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("run")
    run = RunFolder(find_project().root / "runs" / "run")
    assert list((run.path / "checkpoints").iterdir()) == []
    assert not any(thread.name == "kdray-writer" for thread in threading.enumerate())


def test_a_run_that_is_killed_while_it_writes_goes_on(lab, train, monkeypatch):
    """With the second checkpoint half written, and steps trained beyond it."""
    whole = train("whole")
    if (child := os.fork()) == 0:
        try:
            flush, rows = checkpoint._flush, lab.path / "runs" / "run" / "metrics.jsonl"

            def die(file):
                if "step-000000006" in str(file.parent):
                    until = time.monotonic() + PATIENCE
                    while '{"step": 7, "kind": "step"' not in rows.read_text() and time.monotonic() < until:
                        time.sleep(0.01)
                    os.kill(os.getpid(), signal.SIGKILL)
                flush(file)

            monkeypatch.setattr(checkpoint, "_flush", die)
            train("run")
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run = RunFolder(lab.path / "runs" / "run")
    assert ("step", 7) in told(run) and (run.path / "checkpoints" / ".writing-step-000000006").is_dir()
    assert checkpoints(run.path / "checkpoints")[-1].name == "step-000000005"
    Experiment(lab.registry, find_project(lab.path), Console(), "test").resume(run)
    for file in ("student.safetensors", "best.safetensors"):
        assert (run.path / file).read_bytes() == (whole.path / file).read_bytes()
    ours, theirs = (content(checkpoints(r.path / "checkpoints")[-1]) for r in (run, whole))
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0, atol=0)
    stories = [[row for row in told(r) if row[0] != "resumed"] for r in (run, whole)]
    assert sorted(stories[0], key=lambda row: row[1]) == sorted(stories[1], key=lambda row: row[1])


def test_copies_share_nothing():
    weights = torch.arange(12.0).reshape(1, 3, 2, 2).to(memory_format=torch.channels_last)
    state = {"a": {0: {"momentum": weights, "tied": weights, "none": None}}, "groups": [{"betas": (0.9, weights[0])}]}
    found, before = copied(state), copy.deepcopy(state)
    weights.zero_()
    state["groups"][0]["lr"] = 1.0
    torch.testing.assert_close(found, before, rtol=0, atol=0)
    assert found["a"][0]["momentum"].stride() == weights.stride() and isinstance(found["groups"][0]["betas"], tuple)
