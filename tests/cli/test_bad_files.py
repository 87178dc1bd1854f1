"""Checkpoints and data that are not what they should be: refused with exit 2 before anything is written."""

import io
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture
def weights(desk):
    """Of a convnet with widths [4]."""
    return desk.trained() / "student.safetensors"


def start_from(desk, checkpoint, **student):
    student = {"model": "convnet", "widths": [4], "checkpoint": str(checkpoint), **student}
    return desk.refused("train", desk.config(student=student))


def test_another_architecture(desk, weights):
    message = start_from(desk, weights, widths=[8, 8])
    assert "stages.0.conv.weight: 4×1×3×3 in the file, 8×1×3×3 in the network" in message
    assert "stages.1.conv.weight: 8×8×3×3 in the network, missing in the file" in message


def test_truncated(desk, weights):
    cut = weights.read_bytes()[:-100]
    desk.path.joinpath("cut.safetensors").write_bytes(cut)
    assert f"cut.safetensors is truncated or damaged ({len(cut):,} bytes)" in start_from(desk, "cut.safetensors")
    torch.save(load_file(weights), "whole.pt")
    desk.path.joinpath("cut.pt").write_bytes(desk.path.joinpath("whole.pt").read_bytes()[:-200])
    assert "cut.pt is truncated or damaged" in start_from(desk, "cut.pt")


def test_no_checkpoint(desk, weights):
    desk.write("notes.pt", "hello world")
    assert "notes.pt is not a checkpoint" in start_from(desk, "notes.pt")
    message = start_from(desk, weights.with_name("studnet.safetensors"))
    assert "does not exist. Did you mean 'student.safetensors'?" in message


class Code:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def plain_pickle(content, file):
    with open(file, "wb") as handle:
        pickle.dump(content, handle)


@pytest.mark.parametrize("save", [torch.save, plain_pickle])
def test_code_is_not_run(desk, save):
    save({"state_dict": Code()}, "evil.pt")
    assert "is refused: reading it would run code" in start_from(desk, "evil.pt")
    assert not desk.path.joinpath("was-run").exists()


def taught(desk, **teacher):
    return desk.refused("train", desk.config(teacher=teacher, losses={"kd": {}}))


def test_a_teacher_for_other_classes(desk, weights):
    state = load_file(weights)
    state |= {"fc.weight": torch.zeros(100, 4), "fc.bias": torch.zeros(100)}
    save_file(state, "hundred.safetensors")
    message = taught(desk, model="convnet", widths=[4], checkpoint="hundred.safetensors")
    assert "teacher convnet for digits (10 classes): " in message
    assert "hundred.safetensors has 100 classes, and the network here (ConvNet) has 10" in message


def test_a_teacher_of_ones_own_for_other_classes(desk):
    desk.write(
        "nets_of_seven.py",
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n",
    )
    save_file({"1.weight": torch.zeros(7, 64), "1.bias": torch.zeros(7)}, "seven.safetensors")
    message = taught(desk, model="nets_of_seven:net", checkpoint="seven.safetensors")
    assert "teacher: nets_of_seven:net has 7 classes, but the data set digits has 10" in message


def test_a_weak_teacher(desk, weights):
    """It is measured when the run has begun: the run stays, as failed."""
    teacher = {"model": "convnet", "widths": [4], "checkpoint": str(weights), "min_accuracy": 0.9}
    result = desk("train", desk.config(teacher=teacher, losses={"kd": {}}))
    assert result.code == 2
    assert "below teacher.min_accuracy (90.00%)" in result.err and "Traceback" not in result.err
    assert "failed" in desk("list", "runs").out


# -- Parquet -----------------------------------------------------------------------------------------------------------


def picture(size: int = 8) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def parquet(desk, cells: list[bytes | None], file: str = "train.parquet", columns=("image", "label")) -> None:
    desk.path.joinpath("set").mkdir(exist_ok=True)
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": cell, "path": "x.png"} for cell in cells], type_)
    labels = pa.array([i % 2 for i in range(len(cells))])
    pq.write_table(pa.table(dict(zip(columns, (pictures, labels)))), desk.path / "set" / file)


@pytest.fixture
def train_parquet(desk):
    parquet(desk, [picture()] * 20, "test.parquet")
    parquet(desk, [picture()] * 40)
    config = desk.config(data={"name": "parquet", "path": "set", "batch_size": 20})
    return lambda *overrides: desk.refused("train", config, *overrides)


def test_parquet_without_the_columns(desk, train_parquet):
    assert "has no column 'img' (data.image)" in train_parquet("data.image=img")
    assert "has no column 'class' (data.label)" in train_parquet("data.label=class")
    assert "column 'image'" in train_parquet("data.label=image")


@pytest.mark.parametrize("damage", [picture()[:30], b"no picture", None], ids=["cut", "text", "null"])
def test_a_damaged_picture_in_the_middle(desk, train_parquet, damage):
    cells = [picture()] * 40
    cells[27] = damage
    parquet(desk, cells)
    message = train_parquet()
    assert "27" in message and "train.parquet" in message and "object at 0x" not in message


def test_parquet_that_is_none(desk, train_parquet):
    desk.write("set/train.parquet", "hello")
    assert "cannot be read as Parquet" in train_parquet()
    parquet(desk, [])
    train_parquet()
    desk.path.joinpath("set", "train.parquet").unlink()
    assert "train" in train_parquet() and "no file" in train_parquet()


def test_files_that_cannot_be_downloaded(desk, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    student = {"model": "resnet8"}
    message = desk.refused("train", desk.config(data={"name": "cifar10", "batch_size": 50}, student=student))
    assert str(desk.path / "data" / "cifar10") in message
