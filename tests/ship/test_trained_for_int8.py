"""A student that trained for 8 bits: what it measured is what its files say, in int8 with the ranges it learnt."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from safetensors.torch import load_file
from torch import nn

from kdray.config.project import find_project
from kdray.data.normalize import Normalize
from kdray.data.published import digits
from kdray.engine.checkpoint import checkpoints
from kdray.errors import ConfigError, RunFailed
from kdray.launch.experiment import Experiment
from kdray.models.rounding import without_rounding
from kdray.run.card import model_card
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.ship.deployable import Deployable
from kdray.ship.export import export, rebuilt
from kdray.ship.formats import FORMATS, read
from kdray.ship.int8 import _overrides
from tests.conftest import Lab

STUDENT = {"model": "convnet", "widths": [16, 32], "int8": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("trained-for-int8"))


@pytest.fixture(scope="module")
def run(home, teacher_weights):
    return home.run(
        "rounds",
        run={"dir": str(home.path)},
        data={"samples": 600},
        student=STUDENT,
        teacher={"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights},
        losses={"ce": {}, "kd": {"temperature": 4.0}},
        schedule={"epochs": 8, "name": "cosine"},
        engine={"ema": 0.5},
        checkpoint={"keep": 9},
    )


def test_it_is_measured_as_it_was_trained(run, home):
    assert home.measured(run)["top1"] == run.summary["last"]["top1"] > 0.7
    network = rebuilt(run, False, home.registry, find_project().data)[1].network
    assert run.summary["parameters"] == sum(p.numel() for p in network.parameters())
    state = load_file(run.weights(False))
    low, high = state["stages.0.conv.input_range"].tolist()
    assert -2 < low < -0.5 and 0.5 < high < 4  # of digits, normalised
    assert "for 8 bits" in (run.path / "MODEL_CARD.md").read_text()
    assert model_card(run, rebuilt(run, False, home.registry, find_project().data)[0], run.summary)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_answers_as_it_does(run, home, name):
    found = export(run, name, None, False, home.registry, find_project().data)
    runs, facts = read(home.path / found["file"])
    source = digits(None, None, "test")
    found = rebuilt(run, False, home.registry, find_project().data)[1]
    exact = Deployable(without_rounding(found.network)[0], found.normalize)
    with torch.no_grad():
        theirs, ours = (of(source.images) for of in (runs, exact))
    hits = float((theirs.argmax(1) == source.labels).double().mean())
    assert (theirs - ours).abs().mean() > 1e-3, "it does not round"
    assert hits == pytest.approx(run.summary["last"]["top1"], abs=0.01) and facts["network"]["int8"]


def test_int8_has_the_ranges_it_was_trained_with(run, home):
    found = export(run, "onnx", None, False, home.registry, find_project().data, int8=True)
    graph, state = onnx.load(found["file"]).graph, load_file(run.weights(False))
    made_by = {output: node for node in graph.node for output in node.output}
    numbers = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    for node, path in zip(layers, ("stages.0.conv", "stages.1.conv", "fc"), strict=True):
        scale, zero = (numbers[name] for name in made_by[node.input[0]].input[1:])
        low, high = state[f"{path}.input_range"].tolist()
        assert scale == pytest.approx((high - low) / 255, rel=1e-5) and zero == round(-low / float(scale)), path
    beside = found["versus"]
    assert beside["int8"]["accuracy"] == pytest.approx(run.summary["last"]["top1"], abs=0.02)
    assert found["int8"] == {"calibrated_on": 512, "trained_for": True}
    weights = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 100]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.UINT8}


def test_it_goes_on_bit_for_bit(run, home):
    cut = home.path / "cut" / run.name
    shutil.copytree(run.path, cut)
    for path in checkpoints(cut / "checkpoints")[3:]:
        shutil.rmtree(path)
    (cut / "student.safetensors").unlink()
    interrupted = RunFolder(cut)
    interrupted.set_status("interrupted")
    Experiment(home.registry, find_project(home.path), Console(), "test").resume(interrupted)
    ours, theirs = load_file(run.weights(False)), load_file(interrupted.weights(False))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_its_weights_begin_other_networks(run, home):
    """With rounding or without, pruned or whole; and they teach."""
    once = {"data": {"samples": 64}, "schedule": {"epochs": 1}, "run": {"dir": str(home.path)}}
    plain = {"model": "convnet", "widths": [16, 32], "checkpoint": str(run.path)}
    home.run("plain", student=plain, **once)
    home.run("again", student={**plain, "int8": True}, **once)
    both = home.run("narrow", student={**plain, "int8": True, "prune": 0.5}, **once)
    assert home.measured(both)["top1"] == both.summary["last"]["top1"]
    taught = home.run("taught", teacher=plain, losses={"kd": {"temperature": 4.0}}, **once)
    assert taught.summary["teacher"]["top1"] == pytest.approx(run.summary["last"]["top1"], abs=0.02)


def test_what_does_not_go_with_it(home):
    with pytest.raises(ConfigError, match=r"engine.compile and student.int8 are given"):
        home.run("compiled", student=STUDENT, engine={"compile": True})


def test_a_loss_that_is_no_number_is_told(home):
    with pytest.raises(RunFailed, match="not a finite number any more in epoch 1"):
        home.run("wild", student=STUDENT, optimizer={"lr": 1e30}, engine={"log_every": 1})
    with pytest.raises(RunFailed, match="5 batches in a row had to be left out"):
        home.run("left-out", student=STUDENT, optimizer={"lr": 1e30}, engine={"nonfinite": "skip"})


def test_layers_on_tokens_keep_their_ranges_too():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.mix, self.fc = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.mix(self.patch(x).flatten(2).transpose(1, 2)).mean(1))

    network = Deployable(Tokens(), Normalize([0.5], [0.5]))
    ranges = {f"network.{name}": (-1.0 - number, 2.0) for number, name in enumerate(("patch", "mix", "fc"))}
    with TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "tokens.onnx"
        FORMATS["onnx"].write(network, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), {}, file)
        found = _overrides(onnx.load(file).graph, ranges)
    assert sorted(float(entry["rmin"]) for (entry,) in found.values()) == [-3.0, -2.0, -1.0]
