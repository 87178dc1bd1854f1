"""Unequal parts of a batch change nothing either: a run that follows its cluster has any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from kdray.config.load import load_config
from kdray.engine.context import Context
from kdray.engine.train import Job, train
from kdray.models.convnet import ConvNet
from kdray.registry import Registry
from kdray.run.metrics import FileLog, read_rows
from tests.engine.processes import spawn

WORKERS = 3
CRD = {"use": "crd", "dim": 16, "weight": 0.02}
LOSSES = {
    "ce": {},
    "kd": {"weight": 0.5, "temperature": 4.0},
    "bank": {**CRD, "negatives": {"kind": "bank", "count": 50}},
    "queue": {**CRD, "negatives": {"kind": "queue", "count": 75}},
    "infonce": {**CRD, "objective": "infonce", "negatives": {"kind": "batch"}},
}


def work(rank: int, workers: int, file: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    config = load_config(file).config
    job = Job(config, folder, folder / "data", {"teacher": str(file.parent / "teacher.safetensors")})
    (folder / ".token").write_text("")
    train(job, Registry.default(), Context(rank, workers), FileLog(folder, ""))


@pytest.mark.parametrize("int8", [False, True])
def test_three_workers_have_the_losses_of_one(lab, int8):
    torch.manual_seed(0)
    save_file(ConvNet(num_classes=10, in_channels=1, widths=(16, 32)).state_dict(), lab.path / "teacher.safetensors")
    file = lab.config(
        "uneven",
        # Batches of 32 are 10, 11 and 11; the last one of 22 is 7, 7 and 8.
        data={"samples": 150},
        teacher={"model": "convnet", "widths": [16, 32], "checkpoint": "teacher.safetensors"},
        student={"model": "convnet", "widths": [4, 8], "int8": int8},
        losses=LOSSES,
        schedule={"epochs": 3},
        engine={"precision": "fp64", "log_every": 1, "clip_norm": 2.0, "ema": 0.5},
        scale={"num_workers": "1..3"},
    )
    folders = [lab.path / name for name in ("one", "three")]
    for folder in folders:
        folder.mkdir()
    work(0, 1, file, folders[0])
    spawn(work, (WORKERS, file, folders[1]), WORKERS)

    one, three = ([row["terms"] for row in read_rows(f / "metrics.jsonl") if row["kind"] == "step"] for f in folders)
    assert len(one) == len(three) == 15
    for ours, theirs in zip(three, one):
        assert ours == pytest.approx(theirs, rel=1e-8)
    a, b = (load_file(folder / "student.safetensors") for folder in folders)
    for name in a:
        assert_close(a[name], b[name], rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.thorough
def test_a_student_in_shares_rounds_as_a_whole_one(lab):
    file = lab.config(
        "shares",
        data={"samples": 160},
        student={"model": "resnet8", "int8": True},  # its first convolution is in a share of its own
        engine={"precision": "fp64", "log_every": 1},
        schedule={"epochs": 1},
        scale={"num_workers": "1..3", "shard": ["student"]},
    )
    folders = [lab.path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    work(0, 1, file, folders[0])
    spawn(work, (2, file, folders[1]), 2)
    whole, shares = (load_file(folder / "student.safetensors") for folder in folders)
    for name in whole:
        assert_close(shares[name], whole[name], rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
