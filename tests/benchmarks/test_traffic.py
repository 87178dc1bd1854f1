"""What two workers exchange is what can be written down by hand, and the model adds it up."""

import pytest
import yaml

from tests.conftest import ROOT

CONFIG = {
    "name": "traffic",
    "data": {"name": "cifar100", "augment": ["flip"]},
    "teacher": {"model": "convnet", "widths": [4, 16], "train": "teacher.yaml"},
    "student": {"model": "convnet", "widths": [4, 8]},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"epochs": 1},
    "engine": {"log_every": 10},
}
CRD = {"use": "crd", "dim": 16}
LOSSES = {
    "kd": {"ce": {}, "kd": {}},
    "bank": {"ce": {}, "bank": {**CRD, "negatives": {"kind": "bank", "count": 8}}},
    "batch": {"ce": {}, "batch": {**CRD, "negatives": {"kind": "batch"}}},
}
FLOAT, LONG = 4, 8
# Each stage: a convolution of 3 × 3 without bias, and a norm; then the classifier.
STUDENT = 9 * 3 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8 + (8 + 1) * 100
HEADS = (8 + 1) * 16 + (16 + 1) * 16
# Mean and squares of each channel, and the rows they are of; then two sums of each channel for the gradient.
NORMS = sum(2 * channels + 1 + 2 * channels for channels in (4, 8)) * FLOAT


@pytest.fixture
def traffic(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import traffic

    return traffic


@pytest.mark.thorough
def test_the_bytes_of_a_step(traffic, lab):
    registry, configs = traffic.registry_with_random_pictures(), {}
    for name, losses in LOSSES.items():
        file = lab.path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**CONFIG, "losses": losses}))
        for batch in (8, 16):
            configs[f"{name} {batch}"] = traffic.config_of(file, registry, f"data.batch_size={batch}")
    rows = {row["config"]: row for row in traffic.in_two_processes(traffic.counting, configs)}
    steps = {name: row["step"] for name, row in rows.items()}
    for name in LOSSES:
        assert steps[f"{name} 8"] == steps[f"{name} 16"], "stated a picture, it does not depend on the batch"
        assert steps[f"{name} 8"]["norm"] == {"calls": 4, "bytes": NORMS}
        # Of ten steps: whether each of two terms and their sum was finite; then the rows and the two terms.
        assert steps[f"{name} 8"]["log"] == {"calls": 2 / 10, "bytes": (10 * 3 * 4 + 3 * 8) / 10}

    nothing = {"calls": 0, "bytes": 0}
    kd, bank, batch = (steps[f"{name} 8"] for name in LOSSES)
    assert kd["gather"] == kd["backward"] == kd["used"] == nothing
    assert kd["gradient"] == {"calls": 1, "bytes": STUDENT * FLOAT}
    # Index and both embeddings of each picture, after the backward pass.
    assert bank["gather"] == {"calls": 3, "bytes": LONG + 2 * 16 * FLOAT}
    assert bank["backward"] == nothing
    # Here the embeddings of others are negatives, and have gradients.
    assert batch["gather"] == {"calls": 3, "bytes": LONG + 2 * 16 * FLOAT}
    assert batch["backward"] == {"calls": 2, "bytes": 2 * 16 * FLOAT}
    for step in (bank, batch):
        assert step["gradient"]["bytes"] == (STUDENT + HEADS) * FLOAT
        assert step["used"] == {"calls": 1, "bytes": 4 * (8 + 4)}  # tensors of the student, of the heads
    assert rows["bank 8"]["parameters"] - rows["bank 8"]["student parameters"] == HEADS


def test_the_model_by_hand(traffic):
    step = {kind: {"calls": 0, "bytes": 0} for kind in ("norm", "used", "log")}
    step["gather"] = {"calls": 3, "bytes": 1000}
    step["backward"] = {"calls": 2, "bytes": 500}
    step["gradient"] = {"calls": 1, "bytes": 4e6}
    on = traffic.Machine(rate=1000.0, floor=0.02, bandwidth=1e6, latency=0.001)
    assert traffic.seconds(step, on, 1, 64) == {"compute": 0.064}
    four = traffic.seconds(step, on, 4, 64)
    assert four["compute"] == 0.02  # 16 pictures would take 0.016 s
    assert four["gather"] == pytest.approx(0.003 + 3 / 4 * 64 * 1000 / 1e6)
    assert four["backward"] == pytest.approx(0.002 + 2 * 3 / 4 * 64 * 500 / 1e6)
    assert four["gradient"] == pytest.approx(0.001 + 2 * 3 / 4 * 4)
    step["norm"] = {"calls": 2, "bytes": 100}
    assert traffic.seconds(step, on, 4, 64)["norm"] == pytest.approx(0.002 + 3 * 100 / 1e6)  # of three other workers
