"""A student in 8 bits: smaller, it says nearly the same, and the table tells the truth of both files."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from kdray.config.project import find_project
from kdray.data.published import digits
from kdray.errors import ConfigError, RunFailed
from kdray.ship import int8
from kdray.ship.export import export, rebuilt, student_of
from kdray.ship.formats import read
from kdray.ship.int8 import calibration
from kdray.ship.predict import predict
from kdray.ship.versus import versus
from tests.conftest import ROOT, Lab


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def run(home):
    run = home.run(
        "small8",
        run={"dir": str(home.path)},
        data={"samples": 600},
        student={"model": "convnet", "widths": [16, 32]},
        schedule={"epochs": 8},
    )
    assert run.summary["last"]["top1"] > 0.7
    return run


@pytest.fixture(scope="module")
def found(home, run):
    return export(run, "onnx", None, False, home.registry, find_project().data, int8=True)


def test_the_file_is_in_int8_and_smaller(found, run):
    assert found["file"] == str(run.path / "export" / "small8-int8.onnx")
    graph = onnx.load(found["file"]).graph
    types = {tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 100}
    assert types == {onnx.TensorProto.UINT8}, "weights that are not in 8 bits"
    before = {output: node.op_type for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 3 and all(before[name] == "DequantizeLinear" for one in layers for name in one.input)
    beside = found["versus"]
    assert beside["int8"]["bytes"] == found["bytes"] < beside["fp32"]["bytes"] / 2
    assert not list((run.path / "export").glob(".writing-*"))


def test_what_is_told_of_it_is_so(found, run, home):
    """Counted anew, through the file as somebody else would read it."""
    runs, facts = read(run.path / "export" / "small8-int8.onnx")
    ours, _ = student_of(run, False, home.registry, find_project().data)
    source, beside = digits(None, None, "test"), found["versus"]
    with torch.no_grad():
        theirs, exact = runs(source.images), ours(source.images)
    hits = float((theirs.argmax(1) == source.labels).double().mean())
    assert facts["accuracy"] == beside["int8"]["accuracy"] == pytest.approx(hits)
    assert beside["fp32"]["accuracy"] == pytest.approx(run.summary["last"]["top1"])
    assert beside["pictures"] == len(source.labels)
    assert beside["agreement"] == pytest.approx(float((theirs.argmax(1) == exact.argmax(1)).double().mean()))
    assert beside["agreement"] > 0.9 and beside["int8"]["accuracy"] > beside["fp32"]["accuracy"] - 0.05
    assert beside["difference"] == pytest.approx(float((theirs - exact).abs().max()), rel=1e-3)
    assert facts["int8"] == {"calibrated_on": 512, "trained_for": False}
    for size in (1, 64):
        assert beside["fp32"]["milliseconds"][size] > 0 and beside["int8"]["milliseconds"][size] > 0


def test_kdray_predicts_from_it(found, home, run, tmp_path):
    source = digits(None, None, "test")
    Image.fromarray(source.images[0, 0].numpy()).save(tmp_path / "a.png")
    runs, facts = read(run.path / "export" / "small8-int8.onnx")
    (told,) = predict(runs, facts, [tmp_path / "a.png"], 1, home.registry)
    assert told["classes"] == [str(int(runs(source.images[:1]).argmax()))]


def test_it_runs_without_kdray(found, tmp_path):
    code = """
import sys, json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
assert json.loads(session.get_modelmeta().custom_metadata_map["kdray.json"])["int8"]
print(json.dumps([session.run(None, {"pictures": numpy.load(sys.argv[2])[:n]})[0].tolist() for n in (1, 11)]))
"""
    pictures = digits(None, None, "test").images[:11].numpy()
    np.save(tmp_path / "pictures.npy", pictures)
    command = [sys.executable, "-c", code, found["file"], str(tmp_path / "pictures.npy")]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    runs, _ = read(ROOT / found["file"])
    for logits in json.loads(told.stdout):
        torch.testing.assert_close(torch.tensor(logits), runs(torch.from_numpy(pictures[: len(logits)])))


def test_ranges_are_seen_on_training_pictures_of_all_classes(home, run, monkeypatch):
    monkeypatch.setattr(int8, "CALIBRATION", 40)
    config, found = rebuilt(run, False, home.registry, find_project().data)
    data = found.parts.data
    seen = torch.cat(list(calibration(data, config)))
    assert len(seen) == 40
    train = data.train.source.images_on(torch.device("cpu"))[data.train.ids]
    places = [int((train == picture).flatten(1).all(1).nonzero()[0]) for picture in seen]
    assert len(set(places)) == 40 and max(places) - min(places) > len(train) * 0.9, "only a piece of the set"


def test_logits_that_are_no_numbers_are_refused(home, run, found, tmp_path):
    config, rebuilt_ = rebuilt(run, False, home.registry, find_project().data)
    file = run.path / "export" / "small8-int8.onnx"
    broken = {
        "fp32": (file, read(file)[0]),
        "int8": (file, lambda pictures: torch.full((len(pictures), 10), torch.nan)),
    }
    with pytest.raises(RunFailed, match="int8: some logits"):
        versus(broken, rebuilt_.parts.data, config)


def test_other_formats_have_no_int8(home, run):
    with pytest.raises(ConfigError, match=r"onnx alone, not in torch\.export"):
        export(run, "torch.export", None, False, home.registry, find_project().data, int8=True)
