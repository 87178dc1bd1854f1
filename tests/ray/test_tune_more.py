"""Searches that are stopped or go wrong: trials with workers of their own, trials that fail, a killed driver."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table

from kdray.config.project import find_project
from kdray.errors import RunFailed, Stopped
from kdray.launch.answering import Answerer
from kdray.launch.tune import Tune, prepare
from kdray.run.asking import STOP, ask
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.run.trials import read_trials

DATA = {"samples": 100, "validation": 0.2, "last_batch": "drop"}


def search(lab, name, tune, **changes):
    file = lab.config(name, data=DATA, tune=tune, **{"trackers": [], **changes})
    return Tune(lab.registry, find_project(lab.path), Console(), "test").start(prepare(file, [], lab.registry))


@pytest.mark.thorough
def test_a_trial_that_is_stopped_early_frees_its_workers(lab, ray_session):
    lr = {"optimizer.lr": {"grid": [0.1, 1e-6]}}
    tune = {"space": lr, "searcher": "grid", "scheduler": "asha", "grace": 1, "reduction": 2, "trial_workers": 2}
    changes = {"schedule": {"epochs": 60}, "checkpoint": {"every_epochs": 20}}
    summary = search(lab, "groups", {**tune, "cpus_per_trial": 2}, **changes)
    trials = read_trials(lab.path / "runs" / "groups")
    assert [(trial.state, trial.epochs < 60) for trial in trials] == [
        ("finished", False),
        ("stopped", True),
    ]
    assert summary["winner"]["values"] == {"optimizer.lr": 0.1}
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    end = time.monotonic() + 300
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.thorough
def test_a_trial_that_fails_is_told_with_its_own_error_and_not_begun_again(lab, ray_session, capfd, monkeypatch):
    from kdray.launch.tune.telling import Telling

    begun, start = [], Telling.on_trial_start
    monkeypatch.setattr(
        Telling, "on_trial_start", lambda self, *a, **k: (begun.append(str(k["trial"])), start(self, *a, **k))
    )
    tune = {"space": {"data.batch_size": {"grid": [2000, 20]}}, "searcher": "grid"}
    summary = search(lab, "one-fails", tune)
    assert summary["trials"] == {"finished": 1, "stopped": 0, "failed": 1}
    assert summary["winner"]["values"] == {"data.batch_size": 20}
    failed = read_trials(lab.path / "runs" / "one-fails")[0]
    told = "100 training samples do not fill one batch of 2000"
    assert told in failed.error and told in capfd.readouterr().err
    assert (lab.path / "runs" / "one-fails" / "best.yaml").exists()
    assert sorted(begun) == ["001", "002"]


def test_a_search_of_which_all_trials_fail(lab, ray_session):
    tune = {"space": {"data.batch_size": {"grid": [2000, 3000]}}, "searcher": "grid"}
    with pytest.raises(RunFailed, match=r"all 2 trials failed(.|\n)*do not fill one batch of 2000"):
        search(lab, "all-fail", tune)
    assert RunFolder(lab.path / "runs" / "all-fail").status["state"] == "failed"


@pytest.mark.thorough
def test_a_search_that_is_stopped_while_its_cache_fills_goes_on(lab, ray_session, teacher_weights, monkeypatch):
    computed, answer = [], Answerer.answer

    def stop_at_the_first(self, *task):
        write = answer(self, *task)
        computed.append(task)
        if len(computed) == 1:
            ask(folder, STOP)
        return write

    monkeypatch.setattr(Answerer, "answer", stop_at_the_first)
    folder, tune = lab.path / "runs" / "filling", {"space": {"optimizer.lr": {"grid": [0.1]}}, "searcher": "grid"}
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    changes = {"teacher": teacher, "losses": {"ce": {}, "kd": {}}, "schedule": {"epochs": 12}}
    with pytest.raises(Stopped):
        search(lab, "filling", tune, **changes)
    assert RunFolder(folder).status["state"] == "interrupted" and not read_trials(folder)
    assert len(computed) == 2  # the second is computed while the first is written
    again = Tune(lab.registry, find_project(lab.path), Console(), "test")
    again.resume("filling", None)
    assert [trial.state for trial in read_trials(folder)] == ["finished"]
    assert len(computed) == len({str(task) for task in computed}) == 3  # 256 pictures in a shard; none twice


def kdray(*args, cwd):
    command = [sys.executable, "-m", "kdray", *map(str, args)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.thorough
def test_a_killed_driver_is_resumed(lab, ray_session):
    """Trials that had ended are not run again, the one that ran goes on from its checkpoint, and what optuna had seen
    is not lost: it takes the values that it takes in an unbroken search."""
    tune = {"space": {"optimizer.lr": {"loguniform": [1e-3, 1.0]}}, "searcher": "optuna", "scheduler": "none"}
    tune |= {"trials": 5, "max_concurrent": 1}  # the first 3 are drawn, the others chosen
    lasts = {"schedule": {"epochs": 40}, "trackers": []}
    lab.config("broken", data=DATA, tune=tune, **lasts)
    process, folder = kdray("tune", "broken.yaml", cwd=lab.path), lab.path / "runs" / "broken"
    while True:
        trials = read_trials(folder) if (folder / "trials").exists() else []
        if len(trials) == 4 and 10 <= trials[3].epochs < 40:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {
        trial.number: (folder / "trials" / f"{trial.number:03}" / "metrics.jsonl").read_bytes() for trial in trials
    }
    again = kdray("tune", "--resume", "broken", "--json", cwd=lab.path)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    other = search(lab, "unbroken", tune, **lasts)
    trials, unbroken = read_trials(folder), read_trials(lab.path / "runs" / "unbroken")
    assert [trial.state for trial in trials] == ["finished"] * 5
    assert [trial.values for trial in trials] == [trial.values for trial in unbroken]
    assert [trial.metrics for trial in trials] == [trial.metrics for trial in unbroken]
    for trial in trials[:3]:
        assert (Path(trial.path) / "metrics.jsonl").read_bytes() == before[trial.number]
    resumed = RunFolder(Path(trials[3].path)).rows("resumed")
    assert resumed and resumed[0]["step"] > 0
    assert json.loads(out)["winner"]["values"] == other["winner"]["values"]
