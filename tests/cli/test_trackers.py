"""What follows a run: TensorBoard, MLflow, Weights & Biases, a plugin's own; and what happens when one fails."""

import importlib.util
import json

import pytest

from kdray.engine import checkpoint

PLUGIN = """
import json
from pathlib import Path
from pydantic import Field
from kdray import Options, Tracker, TrackerSpec, hookimpl

class MyOptions(Options):
    fails_in: str = Field("", description="Where it raises.")

class Mine(Tracker):
    def __init__(self, options, run):
        super().__init__(options, run)
        self.note(["made", sorted(run)])

    def note(self, what):
        with Path(self.run["path"]).parent.joinpath("told.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\\n")
        if self.options.fails_in == what[0]:
            raise OSError("no ink")

    def row(self, row):
        self.note([row["kind"], row["step"], sorted(self.scalars(row))])

    def close(self, state):
        self.note(["closed", state])

@hookimpl
def kdray_trackers():
    return [TrackerSpec("mine", Mine, MyOptions, summary="For tests.")]
"""


@pytest.fixture
def told(desk):
    desk.write("mine.py", PLUGIN)
    desk.write("kdray.toml", '[plugins]\nload = ["mine.py"]\n')
    return lambda: [json.loads(line) for line in desk.path.joinpath("runs/told.jsonl").read_text().splitlines()]


@pytest.fixture
def interrupted(desk, monkeypatch):
    """interrupted(config, overrides): a run of three epochs that is interrupted after the second."""

    def run(*arguments):
        save = checkpoint.save

        def then_stop(folder, counters, *more):
            path = save(folder, counters, *more)
            if counters.epoch == 2:
                raise KeyboardInterrupt
            return path

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", then_stop)
            assert desk("train", *arguments).code == 130

    return run


def small(desk, **changes):
    return desk.config(engine={"log_every": 1}, schedule={"epochs": 3}, **changes)


def test_a_tracker_hears_of_every_row(desk, told):
    assert desk("train", small(desk, trackers=["mine"])).code == 0
    epoch = sorted(["epoch/ce", "epoch/loss", "epoch/lr", "epoch/pictures_per_second"])
    epoch = sorted([*epoch, "test/loss", "test/top1", "test/top5"])
    one = [["step", 1, ["step/ce"]], ["step", 2, ["step/ce"]], ["epoch", 2, epoch], ["checkpoint", 2, []]]
    rows = told()
    assert rows[0] == ["made", ["config", "name", "path"]]
    in_order = sorted(rows[1:-1], key=lambda row: row[1])  # a checkpoint is written while steps go on
    assert in_order[:4] == one and rows.index(one[2]) < rows.index(one[3]) < rows.index(["epoch", 4, epoch])
    assert rows[-1] == ["closed", "finished"] and len(rows) == 1 + 3 * 4 + 1
    assert not desk.path.joinpath("runs/small/tensorboard").exists()


def test_a_resumed_run_is_tracked_again(desk, told, interrupted):
    interrupted(small(desk, trackers=["mine"]))
    assert told()[-1] == ["closed", "interrupted"]
    before = len(told())
    assert desk("resume", "small").code == 0
    after = told()[before:]
    # The checkpoint is there, and nobody had been told of it.
    assert after[0][0] == "made" and after[1][:2] == ["checkpoint", 4] and after[2][:2] == ["step", 5]
    assert after[-1] == ["closed", "finished"]


def test_the_end_of_a_run_that_fails(desk, told):
    assert desk("train", desk.config(optimizer={"lr": 1e38}, trackers=["mine"])).code == 1
    assert told()[-1] == ["closed", "failed"]


@pytest.mark.parametrize("where", ["made", "step", "closed"])
def test_a_tracker_that_fails_is_told_once_and_stops_nothing(desk, told, where):
    result = desk("train", small(desk, trackers=["tensorboard", {"mine": {"fails_in": where}}]))
    assert result.code == 0
    assert result.err.count("tracker mine failed") == 1
    assert "warning: tracker mine failed and is left out from here on: OSError: no ink" in result.err
    assert len(told()) == {"made": 1, "step": 2, "closed": 14}[where]
    assert list(desk.path.joinpath("runs/small/tensorboard").iterdir())


def test_no_trackers(desk, told):
    assert desk("train", small(desk), "trackers=[]").code == 0
    assert not desk.path.joinpath("runs/small/tensorboard").exists()
    assert not desk.path.joinpath("runs/told.jsonl").exists()


def test_the_teacher_and_the_baseline_have_the_trackers_of_the_run(desk, told):
    desk.config("recipe.yaml", name="tutor", student={"model": "convnet", "widths": [8]})
    teacher = {"model": "convnet", "widths": [8], "train": "recipe.yaml"}
    config = desk.config(teacher=teacher, losses={"kd": {}}, baseline=True, trackers=["mine"])
    assert desk("train", config).code == 0
    assert told().count(["closed", "finished"]) == 3
    assert "teacher" in [kind for kind, *_ in told()]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_not_installed(desk, monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else found(package))
    for arguments in ((), ("--dry-run",)):
        message = desk.refused("train", small(desk, trackers=[name]), *arguments)
        assert f"pip install 'kdray[{name}]'" in message


def test_mlflow(desk, interrupted, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    interrupted(small(desk, trackers=["mlflow"]))
    client = MlflowClient(tracking_uri=f"sqlite:///{desk.path / 'runs/mlflow.db'}")
    (place,) = [e.experiment_id for e in client.search_experiments() if e.name == "kdray"]
    (run,) = client.search_runs([place])
    assert run.info.status == "KILLED" and run.info.run_name == "small"
    assert run.data.params["optimizer.lr"] == "0.05" and run.data.params["student.widths"] == "[4]"
    resumed = desk("resume", "small")
    assert resumed.code == 0 and "warning" not in resumed.err
    (run,) = client.search_runs([place])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "step/ce")] == [1, 2, 3, 4, 5, 6]
    summary = json.loads(desk.path.joinpath("runs/small/summary.json").read_text())
    assert run.data.metrics["test/top1"] == summary["last"]["top1"]


def test_mlflow_where_nobody_answers(desk, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = desk("train", small(desk, trackers=[{"mlflow": {"uri": "http://127.0.0.1:9"}}]))
    assert result.code == 0 and result.err.count("tracker mlflow failed") == 1


def test_wandb(desk, interrupted):
    pytest.importorskip("wandb")
    interrupted(small(desk, trackers=["wandb"]))
    first = json.loads(desk.path.joinpath("runs/small/wandb.json").read_text())
    resumed = desk("resume", "small")
    assert resumed.code == 0 and "tracker" not in resumed.err
    assert json.loads(desk.path.joinpath("runs/small/wandb.json").read_text()) == first
    files = list(desk.path.joinpath("runs/small/wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{first['run']}.wandb"] * 2


def test_wandb_without_an_account(desk, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "run `wandb login`" in desk.refused("train", small(desk, trackers=[{"wandb": {"mode": "online"}}]))
