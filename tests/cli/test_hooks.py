"""Lifecycle hooks of a local plugin that kdray.toml names."""

import pytest

PLUGIN = """
from pathlib import Path
from kdray import ConfigError, hookimpl

def note(run, what):
    with Path(run["path"]).parent.joinpath("told.txt").open("a") as file:
        file.write(f"{run['name']} {what}\\n")

@hookimpl
def kdray_run_started(run):
    note(run, f"started, lr {run['config']['optimizer']['lr']}")

@hookimpl
def kdray_configure(config):
    if config["seed"] == 13:
        raise ConfigError("13 is no seed")
    if config["seed"] == 14:
        raise KeyError("a slip")
    config["seed"] = 15

@hookimpl
def kdray_step_finished(run, metrics):
    note(run, f"step {metrics['step']}")

@hookimpl
def kdray_checkpoint_saved(run, path):
    note(run, f"{Path(path).name} {Path(path, 'state.json').exists()}")

@hookimpl
def kdray_epoch_finished(run, metrics):
    note(run, f"epoch {metrics['epoch']} {sorted(metrics['terms'])}")
    if metrics["epoch"] == 2:
        raise ValueError("a slip of the plugin")

@hookimpl
def kdray_run_finished(run, summary):
    note(run, f"finished {summary['last']['epoch']} {Path(run['path'], 'MODEL_CARD.md').exists()}")

@hookimpl
def kdray_run_failed(run, error):
    note(run, f"failed {type(error).__name__}")
"""


@pytest.fixture
def told(desk):
    desk.write("watcher.py", PLUGIN)
    desk.write("kdray.toml", '[plugins]\nload = ["watcher.py"]\n')
    return lambda: desk.path.joinpath("runs/told.txt").read_text().splitlines()


def test_a_run_that_goes_well(desk, told):
    result = desk("train", desk.config(schedule={"epochs": 2}, engine={"log_every": 3}))
    assert result.code == 0
    lines, saved = told(), "small step-000000002 True"
    assert lines.index("small epoch 1 ['ce']") < lines.index(saved) < lines.index("small epoch 2 ['ce']")
    lines.remove(saved)  # written while step 3 is done, or before
    assert lines == [
        "small started, lr 0.05",
        "small epoch 1 ['ce']",
        "small step 3",
        "small epoch 2 ['ce']",
        "small step-000000004 True",
        "small finished 2 True",
    ]
    assert "warning: plugin local:watcher failed in kdray_epoch_finished: ValueError: a slip" in result.err


def test_a_plugin_that_refuses_a_config(desk, told):
    for arguments in ((), ("--dry-run",)):
        message = desk.refused("train", desk.config(seed=13), *arguments)
        assert message == "error: plugin local:watcher refuses: 13 is no seed\n"
    message = desk.refused("train", desk.config(seed=14), code=3)
    assert "plugin local:watcher failed in kdray_configure: KeyError: 'a slip'" in message


def test_a_plugin_cannot_change_a_config(desk, told):
    assert desk("train", desk.config()).code == 0
    assert "seed: 0\n" in desk.path.joinpath("runs/small/config.yaml").read_text()


def test_a_run_that_fails(desk, told):
    assert desk("train", desk.config(optimizer={"lr": 1e38})).code == 1
    assert told() == ["small started, lr 1e+38", "small failed RunFailed"]
