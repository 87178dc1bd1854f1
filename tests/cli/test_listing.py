"""`kdray runs`: every state that a run can be in."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

TRAINING = {"epochs": 30, "phase": "training", "stage": "", "epoch": 2, "batch": 12, "batches": 45}


@pytest.fixture
def put(desk):
    """A run's folder without the run; the newest is the one made last."""

    def put(name: str, state: str, progress=None, **status):
        folder = desk.path / "runs" / name
        folder.mkdir(parents=True)
        here = {"host": socket.gethostname(), "pid": os.getpid()}
        (folder / "status.json").write_text(json.dumps({"state": state, **here, **status}))
        (folder / "command.txt").write_text("kdray train\n")
        made = time.time() - 1000 + len(desk.runs())
        os.utime(folder / "command.txt", (made, made))
        if progress:
            (folder / "progress.json").write_text(json.dumps(progress))
        return folder

    return put


def test_every_state(desk, put):
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put("one", "finished", TRAINING)
    put("two", "failed", TRAINING, error="ce is not a finite number any more\nand more of it")
    put("three", "interrupted", {**TRAINING, "stage": "ft/paraphraser"})
    put("four", "running", {"epochs": 30, "phase": "evaluating"}, pid=alive.pid)
    put("five", "running", TRAINING, pid=dead.pid)
    put("six", "running", TRAINING, host="elsewhere")
    put("seven", "created")
    put("eight", "running", TRAINING, pid=alive.pid, born=1)  # another process had the number then
    shown = {line.split()[0]: line for line in desk("runs").out.splitlines() if line.strip()}
    rows = json.loads(desk("runs", "--json").out)
    alive.communicate(b"\n")

    assert [row["name"] for row in rows] == ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    states = ["finished", "failed", "interrupted", "running", "died", "running", "created", "died"]
    assert [row["state"] for row in rows] == states
    assert "epoch" not in shown["one"]
    assert "ce is not a finite number any more" in shown["two"] and "and more" not in shown["two"]
    assert "ft/paraphraser, epoch 3, batch 12/45 of 30 epochs" in shown["three"]
    assert "evaluating" in shown["four"] and "elsewhere" not in shown["four"]
    assert "died" in shown["five"] and "epoch 3, batch 12/45 of 30 epochs" in shown["five"]
    assert "running" in shown["six"] and ", on elsewhere, last sign " in shown["six"]


def test_searches_are_listed_too(desk, put):
    for name, state in (("looking", "interrupted"), ("looked", "finished")):
        folder = put(name, state)
        (folder / "tune.yaml").write_text("name: looking\n")
        (folder / "trials" / "001").mkdir(parents=True)
        (folder / "trials" / "001" / "values.json").write_text("{}")
    winner = {"last": {"top1": 0.75}, "best": {"top1": 0.8125}}
    (folder / "summary.json").write_text(json.dumps({"runs": [winner]}))
    first, second = (line for line in desk("runs").out.splitlines() if "search" in line)
    assert "interrupted" in first and first.rstrip().endswith("search, trials: 1")
    assert "75.00%" in second and "81.25%" in second
    assert desk("stop", "looking").out == "looking is not running: interrupted\n"
    assert "looking is a search, not a run: `kdray tune --resume looking` goes on" in desk.refused("resume", "looking")


def test_runs_and_list_runs_are_one(desk, put):
    desk.trained(name="mine")
    for arguments in ((), ("--json",)):
        assert desk("runs", *arguments).out == desk("list", "runs", *arguments).out != ""
    (row,) = json.loads(desk("runs", "--json").out)
    assert row["state"] == "finished" and 0 <= row["last"] <= row["best"] and row["progress"]["epochs"] == 1
    assert desk.path / "runs" / "mine" == type(desk.path)(row["path"])


def test_folders_that_lack_files(desk, put):
    (put("bare", "running") / "command.txt").unlink()
    put("odd", "interrupted", {"phase": "training"})
    assert [row["name"] for row in json.loads(desk("runs", "--json").out)] == ["bare", "odd"]
    assert desk("runs").code == 0


def test_no_runs(desk):
    result = desk("runs")
    assert result.code == 0 and f"there are no runs in {desk.path / 'runs'}" in result.err
