"""`kdray tune` with real trials: what is chosen, stopped, taken over, gone on with, and reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.errors import MismatchError
from kdray.launch.experiment import Experiment
from kdray.launch.tune import Tune, prepare
from kdray.registry import Registry
from kdray.run.console import Console
from kdray.run.folder import RunFolder, read_json
from kdray.run.trials import read_trials
from tests.conftest import ROOT, hear_interrupts

VALIDATED = {"samples": 300, "batch_size": 30, "validation": 0.2}


def rows(trial):
    return RunFolder(Path(trial.path)).rows("epoch")


@pytest.fixture
def search(lab, ray_session):
    """search(name, tune, …): a search over lab's small config, to its end. Gives its summary and its trials."""

    def run(name, tune, *overrides, registry=None, **changes):
        registry = registry or lab.registry
        file = lab.config(name, **{"data": VALIDATED, **changes}, tune=tune)
        tuned = Tune(registry, find_project(lab.path), Console(), "test")
        summary = tuned.start(prepare(file, list(overrides), registry))
        return summary, read_trials(lab.path / "runs" / name)

    return run


@pytest.mark.thorough
def test_the_quickstarts_search_pays(lab, ray_session):
    """ASHA, 16 trials on 2 CPUs, as in configs/tune/quickstart.yaml: better than the plain values, for less than 60 %
    of the epochs, and best.yaml gives the winner's number again."""
    file, project = ROOT / "configs" / "tune" / "quickstart.yaml", find_project(lab.path)
    summary = Tune(lab.registry, project, Console(), "test").start(prepare(file, [], lab.registry))
    trials = read_trials(lab.path / "runs" / "tune-quickstart")
    assert len(trials) == 16 and {t.state for t in trials} <= {"finished", "stopped"}
    assert sum(t.epochs for t in trials) == summary["epochs"] < 0.6 * 16 * 36 == 0.6 * summary["epochs_of_full_trials"]

    def trained(config, name):
        run = Experiment(lab.registry, project, Console(), "test").start(
            config.model_copy(update={"tune": None, "run": config.run.model_copy(update={"name": name})})
        )
        return run.summary["last"]["validation_top1"]

    found = summary["winner"]["validation/top1"]
    plain = load_config(file, ["scale.cpus_per_worker=1"], registry=lab.registry).config
    assert found > trained(plain, "plain")
    best = load_config(summary["best_yaml"], registry=lab.registry)
    assert "tune" not in best.given
    assert trained(best.config, "again") == found == summary["runs"][0]["last"]["validation_top1"]

    # One teacher, and one cache of what it answers, both from before the first trial.
    (teacher,) = (lab.path / "runs").glob("teacher-digits-*")
    (cache,) = (lab.path / "cache").glob("convnet-*")
    first = min((Path(t.path) / "command.txt").stat().st_mtime for t in trials)
    assert all(f.stat().st_mtime < first for f in (teacher / "student.safetensors", *cache.rglob("*.safetensors")))
    # Nothing of the test set in a trial; the winner has its number.
    assert not any("test" in row for t in trials for row in rows(t))
    assert not any(RunFolder(Path(t.path)).rows("teacher") for t in trials)
    assert 0.5 < summary["runs"][0]["last"]["top1"] <= 1
    folder = lab.path / "runs" / "tune-quickstart"
    assert {file.name for file in folder.iterdir()} >= {"history.png", "importance.png", "parallel.png", "tune.yaml"}
    assert not (folder / ".ray").exists()
    table = pq.read_table(folder / "results.parquet").to_pydict()
    assert table["trial"] == list(range(1, 17)) and max(table["epochs"]) == 36
    assert len(set(table["losses.crd.weight"])) == 16


GUARD = """
from pathlib import Path
from kdray import DatasetSpec, Options, Source, hookimpl
from kdray.data.published import digits

FLAG = Path({flag!r})

class Guarded(Source):
    def images_on(self, device):
        assert not FLAG.exists(), "the test set was looked at"
        return super().images_on(device)

def load(options, path, split):
    found = digits(options, path, split)
    if split == "test":
        found.__class__ = Guarded
    return found

@hookimpl
def kdray_datasets():
    return [DatasetSpec("guarded", load, Options)]

@hookimpl
def kdray_run_started(run):
    FLAG.unlink()  # of the winner: trials are not told of
"""


def test_trials_do_not_touch_the_test_set(lab, search):
    flag = lab.path / "searching"
    (lab.path / "guard.py").write_text(GUARD.format(flag=str(flag)))
    (lab.path / "kdray.toml").write_text('[plugins]\nload = ["guard.py"]\n')
    flag.touch()
    space = {"optimizer.lr": {"grid": [0.1, 0.2]}, "student.widths": {"grid": [[4, 8], [6, 8]]}}
    registry = Registry.load(find_project(lab.path))
    summary, trials = search(
        "grid",
        {"space": space, "searcher": "grid", "seeds": [3, 4]},
        registry=registry,
        data={**VALIDATED, "name": "guarded"},
    )
    assert not flag.exists()
    tried = [(t.values["optimizer.lr"], t.values["student.widths"]) for t in trials]
    assert tried == [(0.1, [4, 8]), (0.2, [4, 8]), (0.1, [6, 8]), (0.2, [6, 8])]
    assert {t.state for t in trials} == {"finished"}
    assert [run["seed"] for run in summary["runs"]] == [3, 4]


@pytest.mark.thorough
def test_optuna_with_conditions_and_two_metrics(search):
    space = {
        "optimizer.name": {"choice": ["sgd", "adamw"]},
        "optimizer.momentum": {"uniform": [0.0, 0.9], "when": {"optimizer.name": "sgd"}},
        "student.widths": {"choice": [[2, 4], [8, 16]]},
    }
    tune = {"space": space, "searcher": "optuna", "metric": ["validation/top1", "parameters"], "trials": 6}
    _, trials = search("two", tune)
    assert {t.state for t in trials} == {"finished"} and len(trials) == 6
    for t in trials:
        config = load_config(Path(t.path) / "config.yaml").config
        assert ("optimizer.momentum" in t.values) == (config.optimizer.name == "sgd")
        assert config.student.options["widths"] == t.values["student.widths"]
    by_width = {json.dumps(t.values["student.widths"]): t.metrics["parameters"] for t in trials}
    assert len(by_width) == 2 and by_width["[2, 4]"] < by_width["[8, 16]"]


@pytest.mark.thorough
def test_median_stops_what_does_not_learn(search):
    space = {"optimizer.lr": {"choice": [1e-6, 0.1]}}
    tune = {"space": space, "scheduler": "median", "grace": 2, "trials": 8, "max_concurrent": 2}
    _, trials = search("median", tune, schedule={"epochs": 6})
    stopped = [t for t in trials if t.state == "stopped"]
    assert stopped and {t.values["optimizer.lr"] for t in stopped} == {1e-6}
    assert all(t.epochs < 6 for t in stopped)
    assert all(t.epochs == 6 for t in trials if t.values["optimizer.lr"] == 0.1)


@pytest.mark.thorough
def test_population_based_training_takes_weights_and_values_over(search):
    space = {
        "optimizer.lr": {"loguniform": [1e-5, 0.3]},
        "optimizer.weight_decay": {"loguniform": [1e-5, 1e-3]},
    }
    tune = {"space": space, "searcher": "pbt", "trials": 4, "interval": 3, "max_concurrent": 2}
    _, trials = search("pbt", tune, schedule={"epochs": 12})
    assert all(t.state == "finished" and t.epochs == 12 for t in trials), [t.error for t in trials]
    taken = 0
    for t in trials:
        config = load_config(Path(t.path) / "config.yaml").config
        assert config.optimizer.lr == t.values["optimizer.lr"]
        assert config.optimizer.options["weight_decay"] == t.values["optimizer.weight_decay"]
        history = read_json(Path(t.path) / "values.json")["history"]
        for change in history[1:]:
            taken += 1
            source = next(other for other in trials if f"{other.number:03}" == change["from"])
            before = next(row for row in source.history if row["epoch"] == change["epoch"])
            after = next(row for row in t.history if row["epoch"] == change["epoch"] + 1)
            assert abs(after["loss"] - before["loss"]) < 0.5 * before["loss"]  # it goes on from the other's weights
    assert taken


@pytest.mark.thorough
def test_a_search_that_is_interrupted_goes_on(lab):
    tune = {"space": {"optimizer.lr": {"loguniform": [0.01, 0.3]}}, "scheduler": "none", "trials": 3}
    file = lab.config("cut", data=VALIDATED, tune={**tune, "max_concurrent": 1}, schedule={"epochs": 80})
    folder, command = lab.path / "runs" / "cut", [sys.executable, "-m", "kdray", "tune"]
    process = subprocess.Popen(
        [*command, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    while True:
        found = read_trials(folder) if (folder / "trials").exists() else []
        if len(found) == 2 and 5 < found[1].epochs < 40:
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 130 and "kdray tune --resume cut" in output, output
    assert "Traceback" not in output

    # Again, by `kdray stop` from another process.
    process = subprocess.Popen([*command, "--resume", "cut"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    done_before = read_trials(folder)[1].epochs
    while read_trials(folder)[1].epochs <= done_before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    told = subprocess.run([sys.executable, "-m", "kdray", "stop", "cut"], capture_output=True, text=True, timeout=600)
    assert told.stdout == "cut has stopped: `kdray tune --resume cut` goes on with it\n", told
    assert process.wait(timeout=600) == 130
    assert "kdray tune --resume cut" in (output := process.communicate()[1]) and "Traceback" not in output
    first = (folder / "trials" / "001" / "metrics.jsonl").read_bytes()

    search = Tune(lab.registry, find_project(lab.path), Console(), "test")
    with pytest.raises(MismatchError, match=r"tune\.trials"):
        search.resume("cut", prepare(file, ["tune.trials=7"], lab.registry))
    done = subprocess.run([*command, "--resume", "cut"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("cut/best.yaml")
    trials = read_trials(folder)
    assert [(t.number, t.state) for t in trials] == [(1, "finished"), (2, "finished"), (3, "finished")]
    assert (folder / "trials" / "001" / "metrics.jsonl").read_bytes() == first
    assert RunFolder(folder / "trials" / "002").rows("resumed")[0]["step"] > 0
    assert all([row["epoch"] for row in rows(t)] == list(range(1, 81)) for t in trials)
    assert search.resume("cut", prepare(file, [], lab.registry))["name"] == "cut"
