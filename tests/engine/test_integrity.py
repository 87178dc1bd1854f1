"""Damaged checkpoints and weights: found by their checksums, set aside, or refused."""

import errno
import json
import os
import pickle
import shutil

import pytest

from kdray.engine.checkpoint import checkpoints
from kdray.errors import ConfigError, MismatchError, RunFailed
from kdray.launch.experiment import Experiment
from kdray.launch.measure import rebuild, this_device
from kdray.run.folder import RunFolder
from tests.conftest import Lab


class Code:
    def __reduce__(self):
        return os.mkdir, ("marker",)


def flip(file, at=-3):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "student.safetensors cut": lambda p: os.truncate(p / "student.safetensors", 1000),
    "student.safetensors flipped": lambda p: flip(p / "student.safetensors"),
    "best.safetensors flipped": lambda p: flip(p / "best.safetensors"),
    "optimizer.pt flipped": lambda p: flip(p / "optimizer.pt", 700),
    "optimizer.pt code": lambda p: (p / "optimizer.pt").write_bytes(pickle.dumps(Code())),
    "state.json garbage": lambda p: (p / "state.json").write_text("{{{"),
    "state.json counts": lambda p: (p / "state.json").write_text(
        (p / "state.json").read_text().replace('"epoch": 2', '"epoch": 1')
    ),
    "state.json gone": lambda p: (p / "state.json").unlink(),
    "student.safetensors gone": lambda p: (p / "student.safetensors").unlink(),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(tmp_path_factory.mktemp("whole"))
        patch.chdir(lab.path)
        return lab.run("one", optimizer={"momentum": 0.9})


@pytest.fixture
def run(lab, whole) -> RunFolder:
    """A copy of it, as if it had been interrupted after its last checkpoint."""
    copy = RunFolder(lab.path / "runs" / "one")
    shutil.copytree(whole.path, copy.path)
    copy.set_status("interrupted")
    return copy


def resume(lab, run) -> None:
    from kdray.config.project import find_project
    from kdray.run.console import Console

    Experiment(lab.registry, find_project(lab.path), Console(), "test").resume(run)


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(lab, run, whole, what, capfd):
    older, newest = checkpoints(run.path / "checkpoints")
    DAMAGES[what](newest)
    resume(lab, run)
    told = capfd.readouterr().err
    assert f"{newest} is damaged: {what.split()[0]}" in told and f"goes on from {older.name}" in told
    assert (newest.parent / f"damaged-{newest.name}").is_dir() and newest.is_dir()
    assert not os.path.exists("marker")
    for file in ("student.safetensors", "best.safetensors"):
        assert (run.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_no_whole_checkpoint(lab, run):
    for path in checkpoints(run.path / "checkpoints"):
        flip(path / "student.safetensors")
    with pytest.raises(MismatchError, match=r"is damaged: student.safetensors does not fit its checksum. No other is"):
        resume(lab, run)
    assert len(checkpoints(run.path / "checkpoints")) == 2


@pytest.mark.parametrize("reader", ["sha256_of", "load_file", "_own"])
def test_storage_that_is_away_is_no_damage(run, whole, monkeypatch, reader):
    from kdray.engine import checkpoint

    def away(*_):
        raise OSError(errno.EIO, "Input/output error")

    folder = run.path / "checkpoints"
    before = checkpoints(folder)
    digest = json.loads((before[-1] / "state.json").read_text())["digest"]
    monkeypatch.setattr(checkpoint, reader, away)
    with pytest.raises(RunFailed, match=rf"{before[-1].name} cannot be read: .*Input/output error"):
        checkpoint.newest(folder, digest)
    assert sorted(folder.iterdir()) == before
    monkeypatch.undo()
    assert checkpoint.newest(folder, digest)[0] == before[-1]


def test_a_checkpoint_of_the_format_before(lab, run, whole):
    older, newest = checkpoints(run.path / "checkpoints")
    shutil.rmtree(newest)
    state = json.loads((older / "state.json").read_text())
    del state["files"], state["sha256"]
    (older / "state.json").write_text(json.dumps({**state, "format": 2, "sums": {"": 0.0, "=loss": 0.0, "ce": 0.0}}))
    resume(lab, run)
    assert (run.path / "student.safetensors").read_bytes() == (whole.path / "student.safetensors").read_bytes()


@pytest.mark.parametrize("file", ["student.safetensors", "best.safetensors"])
def test_weights_with_a_flipped_byte_are_not_measured(lab, run, file):
    from kdray.config.load import load_config

    flip(run.path / file)
    config = load_config(run.config_file, registry=lab.registry).config
    with pytest.raises(ConfigError, match=rf"{file} is truncated or damaged"):
        rebuild(config, lab.registry, lab.path, str(run.path / file), "student", this_device())
