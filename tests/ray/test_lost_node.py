"""A node that dies in the middle of a run: it goes on with another one, and ends bit for bit where the unbroken run
does."""

import pytest

from kdray.run.folder import RunFolder
from tests.ray.clusters import cluster, wait_until
from tests.ray.test_survival import kdray, same

SETTINGS = {
    "data": {"samples": 300, "batch_size": 30},
    "losses": {"ce": {}, "crd": {"dim": 16, "weight": 0.1, "negatives": {"kind": "bank", "count": 40}}},
    "schedule": {"epochs": 12},
    "engine": {"ema": 0.9, "log_every": 1},
    "checkpoint": {"every_steps": 4},  # 10 steps an epoch: checkpoints fall inside epochs
    "scale": {"num_workers": 2},
}


@pytest.fixture
def two_nodes():
    with cluster(RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="20") as two:
        two.mine = [two.add_node(num_cpus=1) for _ in range(2)]
        yield two


def test_a_dead_node_is_replaced_and_nothing_is_lost(lab, two_nodes, teacher_weights):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}

    def start(name):
        file = lab.config(name, **SETTINGS, teacher=teacher)
        return kdray("train", file, "--address", two_nodes.address), RunFolder(lab.path / "runs" / name)

    process, unbroken = start("unbroken")
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output

    process, run = start("broken")
    try:
        # Beyond a checkpoint that lies inside an epoch.
        wait_until(lambda: process.poll() is not None or steps(run) > 15, "it trains", 400)
        two_nodes.remove_node(two_nodes.mine[0], allow_graceful=False)
        assert steps(run) < steps(unbroken), "it was finished before the node died"
        two_nodes.add_node(num_cpus=1)
        output = process.communicate(timeout=600)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "the cluster has lost the node" in output and "the cluster has a new node" in output
    assert any(row["kind"] == "resumed" and row["step"] > 0 for row in run.rows())
    same(run, unbroken)


def steps(run):
    return max((row["step"] for row in run.rows()), default=-1) if run.path.exists() else -1
