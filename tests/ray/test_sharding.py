"""A student in shares learns what the whole one does."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from kdray.config.project import find_project
from kdray.engine.checkpoint import checkpoints
from kdray.errors import ConfigError
from kdray.launch.experiment import Experiment
from kdray.run.console import Console
from kdray.run.folder import RunFolder


def train(lab, weights, name, shard, **changes):
    return lab.run(
        name,
        data={
            "samples": 150,
            "augment": [{"crop": {"padding": 1}}],
            "extra_views": {"strong": {"augment": [{"cutout": {"size": 2}}]}},
        },
        student={"model": "resnet8"},
        teacher={"model": "convnet", "widths": [16, 32], "checkpoint": weights},
        losses={
            "ce": {},
            "kd": {"weight": 0.5, "temperature": 4.0},
            "crd": {"dim": 16, "weight": 0.02, "negatives": {"kind": "bank", "count": 50}},
            "at": {"weight": 10.0},
            "crld": {"weight": 0.1},
        },
        optimizer={"lr": 0.02},
        schedule={"epochs": 3},
        engine={"precision": "fp64", "log_every": 1, "clip_norm": 2.0, "accumulate": 2},
        scale={"num_workers": 2, "shard": shard},
        **changes,
    )


@pytest.mark.thorough
def test_shares_make_no_difference(ray_session, lab, teacher_weights):
    plain, shared = (
        train(lab, teacher_weights, name, shard) for name, shard in (("a", []), ("b", ["student", "teachers"]))
    )
    for ours, theirs in zip(plain.rows("step"), shared.rows("step"), strict=True):
        assert theirs["terms"] == pytest.approx(ours["terms"], rel=1e-8)
    for ours, theirs in zip(plain.rows("epoch"), shared.rows("epoch"), strict=True):
        assert theirs["test"] == pytest.approx(ours["test"], rel=1e-8)
    for file in ("student.safetensors", "best.safetensors"):
        a, b = (load_file(run.path / file) for run in (plain, shared))
        assert a.keys() == b.keys()
        for key in a:
            assert_close(b[key], a[key], rtol=1e-8, atol=1e-10)
    assert plain.rows("step")[0]["terms"]["ce"] > plain.rows("step")[-1]["terms"]["ce"]

    ours, theirs = (torch.load(checkpoints(run.path / "checkpoints")[-1] / "optimizer.pt") for run in (plain, shared))
    assert ours["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, memory in ours["state"].items():
        assert_close(theirs["state"][number], memory, rtol=1e-8, atol=1e-10)

    # What is saved is whole: a run goes on from it in shares.
    copy = RunFolder(lab.path / "runs" / "c")
    shutil.copytree(plain.path, copy.path)
    shutil.rmtree(checkpoints(copy.path / "checkpoints")[-1])
    copy.config_file.write_text(copy.config_file.read_text().replace("shard: []", "shard: [student]"))
    copy.set_status("interrupted")
    Experiment(lab.registry, find_project(lab.path), Console(), "test").resume(copy)
    a, c = (load_file(run.path / "student.safetensors") for run in (plain, copy))
    for key in a:
        assert_close(c[key], a[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "changes, concerns",
    [
        ({"engine": {"ema": 0.9}}, "engine.ema"),
        ({"losses": {"hint": {"layer": 1, "init_epochs": 1}}}, "'hint', whose stages"),
        ({"losses": {"ce": {}, "simkd": {}}}, "another head"),
    ],
)
def test_what_needs_whole_weights_is_refused(lab, teacher_weights, changes, concerns):
    with pytest.raises(ConfigError, match=concerns):
        lab.run(
            "refused",
            teacher={"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights},
            scale={"num_workers": 2, "shard": ["student"]},
            **({"losses": {"ce": {}, "kd": {}}} | changes),
        )
    assert not (lab.path / "runs").exists()
