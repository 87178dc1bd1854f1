"""The number of workers changes the speed, not the objective."""

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from kdray import clock
from kdray.clock import Part
from kdray.engine.checkpoint import checkpoints

CRD = {"use": "crd", "dim": 16, "weight": 0.02}
LOSSES = {
    "ce": {"weight": 1.0},
    "kd": {"weight": 0.5, "temperature": 4.0},
    "bank": {**CRD, "negatives": {"kind": "bank", "count": 50}},
    "relax": {**CRD, "negatives": {"kind": "bank", "count": 300, "mode": "relax"}},
    "shared": {**CRD, "negatives": {"kind": "shared", "count": 50}},
    "queue": {**CRD, "negatives": {"kind": "queue", "count": 75}},
    "batch": {**CRD, "negatives": {"kind": "batch"}},
    "infonce": {**CRD, "objective": "infonce", "negatives": {"kind": "batch"}},
}


def train(lab, teacher_weights, workers, precision, losses=LOSSES, **data):
    # 150 samples in batches of 32: the last batch of an epoch has 22, 11 for each of two workers. 20 steps in 4 epochs.
    return lab.run(
        f"{precision}-{workers}",
        data={"samples": 150, **data},
        teacher={"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights},
        losses=losses,
        schedule={"epochs": 4},
        engine={"precision": precision, "log_every": 1, "clip_norm": 2.0, "ema": 0.5},
        scale={"num_workers": workers},
    )


@pytest.mark.parametrize(
    "precision, tolerance", [("fp64", 1e-8), pytest.param("fp32", 1e-4, marks=pytest.mark.thorough)]
)
def test_one_and_two_workers_have_the_same_losses_and_banks(ray_session, lab, teacher_weights, precision, tolerance):
    one, two = (train(lab, teacher_weights, workers, precision) for workers in (1 if precision == "fp64" else 0, 2))
    rows = [[row["terms"] for row in run.rows("step")] for run in (one, two)]
    assert len(rows[0]) == 20
    assert set(rows[0][0]) == set(LOSSES)
    for step, (ours, theirs) in enumerate(zip(*rows)):
        for name in LOSSES:
            assert theirs[name] == pytest.approx(ours[name], rel=tolerance), f"{name} at step {step}"
    for file in ("distillers", "student", "ema"):  # banks, queues, constants, heads; weights and batch-norm statistics
        a, b = (load_file(checkpoints(run.path / "checkpoints")[-1] / f"{file}.safetensors") for run in (one, two))
        assert a.keys() == b.keys()
        for key in a:
            assert_close(b[key], a[key], rtol=10 * tolerance, atol=10 * tolerance, msg=lambda m, key=key: f"{key}: {m}")
    tests = [run.rows("epoch")[-1]["test"] for run in (one, two)]
    assert [t["samples"] for t in tests] == [one.rows("teacher")[0]["samples"]] * 2
    assert tests[1]["loss"] == pytest.approx(tests[0]["loss"], rel=10 * tolerance)
    # The comparison could fail: the losses move, and the terms differ from each other.
    assert rows[0][0]["ce"] > 1.01 * rows[0][-1]["ce"]
    assert len({round(value, 6) for value in rows[0][-1].values()}) == len(LOSSES)


@pytest.mark.thorough
def test_one_and_two_workers_mix_the_same_pictures(ray_session, lab, teacher_weights):
    losses = {"ce": {}, "kd": {"weight": 0.5, "temperature": 4.0}}
    lab.profile = True
    with clock.running() as times:
        one, two = (train(lab, teacher_weights, workers, "fp64", losses, mix="mixup") for workers in (0, 2))
    rows = [[row["terms"] for row in run.rows("step")] for run in (one, two)]
    assert len(rows[0]) == 20
    for ours, theirs in zip(*rows):
        assert theirs == pytest.approx(ours, rel=1e-8)
    # Where the time went is told by the first worker, and is part of what the driver waited for.
    assert Part.WORKERS in times.seconds[two.name]
    for run in (one, two):
        assert {Part.NETWORKS, Part.FIRST, Part.STEPS, Part.EVALUATION} <= set(times.seconds[run.name])
        assert min(times.seconds[run.name].values()) >= 0
        assert (run.path / "profile" / "trace.json").exists()
