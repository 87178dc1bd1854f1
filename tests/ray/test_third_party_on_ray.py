"""A package written from the tutorial and one of a copied first-party file, installed with pip into an environment of
their own: they train on two Ray workers, and go on after the driver was killed."""

import json
import os
import signal
import subprocess

import pytest
import yaml

from kdray.engine.checkpoint import checkpoints
from kdray.run.folder import RunFolder
from tests.conftest import ROOT
from tests.plugins_host.test_third_party import Elsewhere, files, package
from tests.ray.test_survival import wait_for

CHANGES = {
    "data": {"name": "digits", "batch_size": 20, "samples": 120},
    "losses": {"ce": {}, "rowsim": {"weight": 10.0, "sharpness": 2.0}, "dkd": {"weight": 0.5}},
    "checkpoint": {"every_steps": 3},
    "engine": {"log_every": 1},
    "scale": {"num_workers": 2},
}


@pytest.fixture
def elsewhere(tmp_path):
    there = Elsewhere(tmp_path)
    sources = {"rowsim": files()["rowsim.py"], "dkd": (ROOT / "plugins" / "dkd.py").read_text()}
    there.install(*(package(tmp_path, name, source) for name, source in sources.items()))
    (tmp_path / "kdray.toml").write_text('[plugins]\nblock = ["kdray:dkd"]\n')  # the copy takes its place
    (tmp_path / "teacher.yaml").write_text(files()["teacher.yaml"])
    (tmp_path / "rowsim.yaml").write_text(yaml.safe_dump(yaml.safe_load(files()["rowsim.yaml"]) | CHANGES))
    return there


@pytest.mark.thorough
def test_they_train_and_resume(elsewhere, tmp_path):
    elsewhere.call("-m", "kdray", "train", "rowsim.yaml", "--name", "whole")
    whole, broken = (RunFolder(tmp_path / "runs" / name) for name in ("whole", "broken"))
    environment = json.loads((whole.path / "environment.json").read_text())
    used = {plugin["distribution"]: plugin["name"] for plugin in environment["plugins"]}
    assert used["kdray-rowsim"] == "rowsim" and used["kdray-dkd"] == "dkd"
    assert set(whole.rows("epoch")[-1]["terms"]) == {"ce", "rowsim", "dkd/target", "dkd/others"}

    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    command = [elsewhere.python, "-m", "kdray", "train", "rowsim.yaml", "--name", "broken"]
    driver = subprocess.Popen(command, cwd=tmp_path, **quiet)
    wait_for(broken, driver, 8)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert broken.state == "died"
    elsewhere.call("-m", "kdray", "resume", "broken")
    ends = [checkpoints(run.path / "checkpoints")[-1] for run in (whole, broken)]
    assert ends[0].name == ends[1].name
    for file in ("student.safetensors", "distillers.safetensors"):
        assert (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes(), file
