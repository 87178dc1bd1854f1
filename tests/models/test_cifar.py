"""The 22 CIFAR networks against recorded float64 numbers, for the weights of `fill` and the input of `picture`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kdray.models.cifar import MODELS
from kdray.models.taps import Tapped, probe

GOLDEN = Path(__file__).parent.parent / "golden"
NUMBERS = np.load(GOLDEN / "models.npz")
RECORDS = json.loads((GOLDEN / "models.json").read_text())
ALL = frozenset({"logits", "embedding", "features", "preactivations", "head"})


def fill(model):
    for j, (name, tensor) in enumerate(model.state_dict().items()):
        w = torch.cos(0.37 * torch.arange(tensor.numel(), dtype=torch.float64) + j).reshape(tensor.shape)
        if name.endswith("num_batches_tracked"):
            tensor.zero_()
        elif tensor.ndim >= 2:
            tensor.copy_(w * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(1 + 0.2 * w)
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * w)
        else:
            tensor.copy_(1 + 0.1 * w)


def picture():
    return torch.sin(0.05 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).reshape(2, 3, 32, 32)


def make(spec, num_classes=100, in_channels=3):
    return spec.build(num_classes=num_classes, in_channels=in_channels, weights=None, options=spec.Options())


def relative(ours, recorded):
    return np.abs(ours.numpy() - recorded).max() / np.abs(recorded).max()


def by_name(spec):
    return spec.name


def test_all_are_there():
    assert sorted(map(by_name, MODELS)) == sorted(RECORDS)


@pytest.mark.parametrize("spec", MODELS, ids=by_name)
def test_reproduces_the_recorded_numbers(spec):
    record, model = RECORDS[spec.name], make(spec).double().eval()
    assert [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()] == record["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    fill(model)
    with torch.no_grad():
        plain = model(picture())
        out = Tapped(model, spec.layers, ALL)(picture())
    assert relative(out.logits, NUMBERS[f"{spec.name}/logits"]) < 1e-6
    assert relative(out.embedding, NUMBERS[f"{spec.name}/pooled"]) < 1e-6
    assert torch.equal(out.logits, plain)  # tapping changes nothing
    for i, features in enumerate(out.features):
        assert float(features.abs().mean()) == pytest.approx(float(NUMBERS[f"{spec.name}/map_{i}_mean_abs"]), rel=1e-6)
    shapes = [list(features.shape[1:]) for features in out.features]
    assert [*shapes, list(out.embedding.shape[1:])] == record["feature_shapes"]
    assert [list(x.shape[1:]) for x in out.preactivations] == shapes
    check_preactivations(spec.name, model, out)


def check_preactivations(name, model, out):
    pairs = list(zip(out.preactivations, out.features))[1:]
    assert torch.equal(out.preactivations[0], out.features[0])  # the stem, as published
    for i, (before, after) in enumerate(pairs):
        if name.startswith("wrn"):
            norm = (model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1)[i]
            assert torch.equal(before, norm(after))
        elif name == "MobileNetV2":
            assert torch.equal(before, after)
        elif name == "ShuffleV2":  # its features are shuffled, its pre-activations are not
            shuffled = before.relu().unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            assert torch.equal(shuffled, after) and before.min() < 0
        else:
            assert torch.equal(before.relu(), after) and before.min() < 0


SMALL = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


@pytest.mark.parametrize("spec", [m for m in MODELS if m.name in SMALL], ids=by_name)
def test_takes_other_pictures(spec):
    tapped = Tapped(make(spec, num_classes=10, in_channels=1), spec.layers, ALL)
    shapes = probe(tapped, torch.zeros(2, 1, 8, 8))
    assert shapes.logits == (10,)
    assert shapes.embedding == tuple(RECORDS[spec.name]["feature_shapes"][-1])
    assert probe(tapped, torch.zeros(2, 1, 48, 40)).logits == (10,)


@pytest.mark.parametrize("spec", [m for m in MODELS if m.name in SMALL], ids=by_name)
def test_trains(spec):
    torch.manual_seed(0)
    tapped = Tapped(make(spec, num_classes=10), spec.layers, ALL)
    out = tapped(torch.randn(4, 3, 16, 16))
    sum(x.square().mean() for x in [out.logits, out.embedding, *out.features, *out.preactivations]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tapped.parameters())
