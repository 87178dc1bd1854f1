"""First stages and further views, here and on two workers; the plugin is a local file, which travels with the run."""

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from kdray.engine.checkpoint import checkpoints
from kdray.registry import Registry
from tests.engine.conftest import PLUGIN
from tests.engine.test_stages import VIEWS


def train(lab, teacher_weights, workers):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    return lab.run(
        f"workers-{workers}",
        # 150 samples in batches of 32: the last batch of an epoch has 22, 11 for each of two workers.
        data={"samples": 150, "extra_views": VIEWS},
        teachers={"one": teacher, "two": teacher | {"normalize": {"mean": [0.5], "std": [0.3]}}},
        losses={
            "ce": {},
            "kd": {"teacher": "average"},
            "staged": {"teacher": "one"},
            "two_views": {"teacher": "two"},
            "new_head": {"teacher": "one"},
        },
        schedule={"epochs": 2},
        engine={"precision": "fp64", "log_every": 1, "ema": 0.5},
        checkpoint={"keep": 99},
        scale={"num_workers": workers},
    )


@pytest.mark.thorough
def test_stages_and_views_are_the_same_here_and_on_two_workers(ray_session, lab, teacher_weights):
    lab.registry = Registry.load(paths=[PLUGIN])
    one, two = (train(lab, teacher_weights, workers) for workers in (0, 2))
    rows = [[row for row in run.rows() if row["kind"] in ("teacher", "step", "stage", "epoch")] for run in (one, two)]
    assert [row["kind"] for row in rows[0]].count("stage") == 3
    assert len(rows[0]) == len(rows[1]) > 20
    for ours, theirs in zip(*rows):
        assert theirs.get("stage") == ours.get("stage")
        for name, value in ours.get("terms", {}).items():
            assert theirs["terms"][name] == pytest.approx(value, rel=1e-8, abs=1e-12), f"{name} at step {ours['step']}"
    ends = [checkpoints(run.path / "checkpoints") for run in (one, two)]
    assert [path.name for path in ends[0]] == [path.name for path in ends[1]] and len(ends[0]) == 5
    for here, there in zip(*ends):
        for file in sorted(path.name for path in here.glob("*.safetensors")):
            a, b = load_file(here / file), load_file(there / file)
            assert a.keys() == b.keys()
            for key in a:
                assert_close(b[key], a[key], rtol=1e-7, atol=1e-9, msg=lambda m, k=key, f=here / file: f"{f} {k}: {m}")
