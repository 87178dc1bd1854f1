"""A student leaves kdray, and answers as it did in its run."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from kdray.config.project import find_project
from kdray.data.published import digits
from kdray.errors import ConfigError, RunFailed
from kdray.ship import export as module
from kdray.ship.export import compare, export, student_of
from kdray.ship.formats import FORMATS, read
from kdray.ship.predict import files_of, predict
from tests.conftest import Lab

# What somebody runs who has the file and torch or onnxruntime, and no kdray.
THEIRS = {
    "torch.export": """
import sys, json, torch
extra = {"kdray.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
pictures = torch.load(sys.argv[2])
assert "kdray" not in sys.modules
print(json.dumps([json.loads(extra["kdray.json"]), *[program(pictures[:n]).tolist() for n in (1, 3, 11)]]))
""",
    "onnx": """
import sys, json, torch, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["kdray.json"])
pictures = torch.load(sys.argv[2]).numpy()
assert "kdray" not in sys.modules
print(json.dumps([facts, *[session.run(None, {"pictures": pictures[:n]})[0].tolist() for n in (1, 3, 11)]]))
""",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("ship"))


@pytest.fixture(scope="module")
def run(home):
    run = home.run("ship", run={"dir": str(home.path)}, data={"samples": 600}, schedule={"epochs": 4})
    assert run.summary["last"]["top1"] > 0.3
    return run


@pytest.fixture
def ship(home, run):
    def call(name, **given):
        options = {"run": run, "output": None, "best": False, **given}
        return export(name=name, registry=home.registry, data_root=find_project().data, **options)

    return call


@pytest.mark.parametrize("name", THEIRS)
def test_a_file_runs_without_kdray(ship, run, home, tmp_path, name):
    found = ship(name, output=tmp_path / f"student{FORMATS[name].suffix}")
    pictures = digits(None, None, "test").images[:11]
    torch.save(pictures, tmp_path / "pictures.pt")
    command = [sys.executable, "-c", THEIRS[name], found["file"], str(tmp_path / "pictures.pt")]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    facts, *logits = json.loads(told.stdout)
    ours, _ = student_of(run, False, home.registry, find_project().data)
    with torch.no_grad():
        for n, theirs in zip((1, 3, 11), logits):
            torch.testing.assert_close(torch.tensor(theirs), ours(pictures[:n]), rtol=1e-4, atol=1e-5)
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["input"] == {"name": "pictures", "dtype": "uint8", "shape": ["batch", 1, 8, 8]}
    assert facts["accuracy"] == run.summary["last"]["top1"] and facts["network"]["widths"] == [4, 8]
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("name", FORMATS)
def test_each_is_read_again(ship, run, home, tmp_path, name):
    found = ship(name, best=True)
    assert found["file"].startswith(str(run.path / "export" / "ship-best"))
    runs, facts = read(tmp_path / found["file"])
    ours, same = student_of(run, True, home.registry, find_project().data)
    pictures = digits(None, None, "test").images[:5]
    torch.testing.assert_close(runs(pictures), ours(pictures), rtol=1e-4, atol=1e-5)
    assert facts == same


def test_a_file_that_answers_otherwise_is_not_put_in_place(ship, tmp_path, monkeypatch):
    broken = FORMATS | {"torch.export": type(FORMATS["onnx"])(".pt2", _spoiled, FORMATS["torch.export"].read)}
    monkeypatch.setattr(module, "FORMATS", broken)
    with pytest.raises(RunFailed, match="differs from the student by"):
        ship("torch.export", output=tmp_path / "bad.pt2")
    assert not list(tmp_path.iterdir())


def _spoiled(network, example, facts, file):
    FORMATS["torch.export"].write(torch.nn.Sequential(network, torch.nn.Threshold(0.0, 0.0)), example, facts, file)


def test_logits_that_are_no_numbers_are_not_close():
    network, pictures = torch.nn.Flatten(), torch.ones(64, 1, 2, 2)
    assert compare(network, lambda x: network(x) + 1e-4, pictures) == pytest.approx(1e-4, rel=1e-2)
    with pytest.raises(RunFailed, match="differs from the student by nan"):
        compare(network, lambda x: network(x) * float("nan"), pictures)


def test_a_head_of_a_loss_goes_along(home, ship, teacher_weights, tmp_path):
    """SimKD's student answers through the teacher's classifier."""
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    made = home.run("head", run={"dir": str(home.path)}, teacher=teacher, losses={"simkd": {}}, schedule={"epochs": 1})
    ship("torch.export", run=made, output=tmp_path / "head.pt2")
    with pytest.raises(ConfigError, match="another head, which the file could not name"):
        ship("pytorch", run=made, output=tmp_path / "head.pt")


def test_what_is_no_file_of_ours(tmp_path):
    for name, content in (("a.pt2", b"no"), ("a.onnx", b""), ("a.pt", b"\x80")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name} cannot be read as"):
            read(tmp_path / name)
    (tmp_path / "a.bin").touch()
    with pytest.raises(ConfigError, match=r"what can be read is \.pt, \.pt2, \.onnx"):
        read(tmp_path / "a.bin")


def test_another_suffix(ship, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        ship("onnx", output=tmp_path / "a.pt2")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_place_that_cannot_be_written(ship, tmp_path, place):
    """A file where a folder is needed, and a folder where the file is."""
    (tmp_path / "notes").touch()
    (tmp_path / "taken.pt2").mkdir()
    output = tmp_path / "notes" / "a.pt2" if place == "file" else tmp_path / "taken.pt2"
    with pytest.raises(ConfigError, match=r"cannot be written: .*--output FILE"):
        ship("torch.export", output=output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "taken.pt2"]


@pytest.mark.parametrize("kind", ["folder", "no picture"])
def test_a_picture_that_cannot_be_read(run, home, tmp_path, kind):
    file = tmp_path / "a.png"
    file.write_bytes(b"not a picture")
    if kind == "folder":  # between the listing and the reading it may become anything
        file.unlink()
        file.mkdir()
    runs, facts = student_of(run, False, home.registry, find_project().data)
    with pytest.raises(ConfigError, match=r"a\.png"):
        list(predict(runs, facts, [file], 3, home.registry))


def test_pictures_from_files(run, home, tmp_path):
    """Also larger ones: they are made to fit."""
    source = digits(None, None, "test")
    (tmp_path / "deep").mkdir()
    for i in range(4):
        picture = Image.fromarray(source.images[i, 0].numpy())
        (picture.resize((64, 64)) if i % 2 else picture).save(tmp_path / "deep" / f"{i}.png")
    (tmp_path / "deep" / "notes.txt").touch()
    files = files_of([tmp_path])
    assert [file.name for file in files] == [f"{i}.png" for i in range(4)]
    runs, facts = student_of(run, False, home.registry, find_project().data)
    found = list(predict(runs, facts, files, 3, home.registry))
    with torch.no_grad():
        likely = torch.softmax(runs(source.images[:1])[0], 0).topk(3)
    assert found[0]["classes"] == [str(int(i)) for i in likely.indices]
    assert found[0]["probabilities"] == pytest.approx(likely.values.tolist(), rel=1e-5)
    assert all(len(one["classes"]) == 3 and sum(one["probabilities"]) <= 1 + 1e-9 for one in found)
    with pytest.raises(ConfigError, match="no picture"):
        files_of([tmp_path / "gone.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pictures in"):
        files_of([tmp_path / "empty"])
