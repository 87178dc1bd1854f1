import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from kdray import ConfigError
from kdray.models.checkpoint import load_weights, weights_digest


def resnet(registry, name="resnet8", classes=10):
    torch.manual_seed(sum(map(ord, name)))
    return registry.get("models", name).build(num_classes=classes, in_channels=3, weights=None, options=None)


@pytest.fixture
def saved(registry):
    return resnet(registry).state_dict()


@pytest.fixture
def model(registry):
    torch.manual_seed(1)
    other = resnet(registry)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    return other


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": prefixed(s), "best_prec1": 92.6},
        lambda s: {"model": s, "epoch": 240, "optimizer": {"state": {}}, "opt": argparse.Namespace(lr=0.05)},
        lambda s: {"net": prefixed(s)},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict_module", "model_with_options", "net_module", "before_num_batches_tracked"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_loads(model, saved, tmp_path, wrap, zipped):
    torch.save(wrap(saved), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_loads_safetensors(model, saved, tmp_path, name):
    save_file(prefixed(saved), tmp_path / name)
    load_weights(model, tmp_path / name)
    assert all(torch.equal(saved[n], tensor) for n, tensor in model.state_dict().items())


def test_a_network_with_a_child_called_module_keeps_its_names(tmp_path):
    model = torch.nn.Sequential()
    model.add_module("module", torch.nn.Linear(2, 2))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")


def refused(model, path):
    before = weights_digest(model)
    with pytest.raises(ConfigError) as error:
        load_weights(model, path)
    assert weights_digest(model) == before
    assert path.name in str(error.value)
    return str(error.value)


def test_another_architecture(registry, model, tmp_path):
    torch.save(resnet(registry, "resnet8x4", 100).state_dict(), tmp_path / "w.pth")
    message = refused(model, tmp_path / "w.pth")
    assert "does not fit the network (ResNet)" in message
    assert "conv1.weight: 32×3×3×3 in the file, 16×3×3×3 in the network" in message
    assert "layer1.0.downsample.0.weight: 64×32×1×1 in the file, unknown to the network" in message
    assert "0 missing, 6 unexpected" in message


def test_a_deeper_network(registry, saved, tmp_path):
    torch.save(saved, tmp_path / "w.pth")
    message = refused(resnet(registry, "resnet14"), tmp_path / "w.pth")
    assert "layer1.1.conv1.weight: 16×16×3×3 in the network, missing in the file" in message
    assert "0 of another shape, 30 missing, 0 unexpected" in message


def test_other_classes(registry, saved, tmp_path):
    torch.save(saved, tmp_path / "w.pth")
    message = refused(resnet(registry, classes=7), tmp_path / "w.pth")
    assert "fc.weight: 10×64 in the file, 7×64 in the network" in message and "has 10 classes" in message


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.001, 0.3, 0.99])
def test_truncated(model, saved, tmp_path, kind, part):
    whole, path = tmp_path / "whole", tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(saved, whole)
    else:
        torch.save(saved, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "truncated or damaged" in refused(model, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# a text, not weights\n", "is not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is not a"),
    ],
)
def test_no_checkpoint(model, tmp_path, content, message):
    (tmp_path / "w.pth").write_bytes(content)
    assert message in refused(model, tmp_path / "w.pth")


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))], ids=["torch", "pickle"])
def test_code_is_refused_and_does_not_run(model, tmp_path, save):
    save({"state_dict": Code(str(tmp_path / "ran"))}, tmp_path / "w.pth")
    message = refused(model, tmp_path / "w.pth")
    assert "is refused" in message and "state_dict()" in message
    assert "mkdir" in message or "Python pickle" in message
    assert not (tmp_path / "ran").exists()


def test_a_whole_network_is_refused(model, tmp_path):
    torch.save(model, tmp_path / "w.pth")
    message = refused(model, tmp_path / "w.pth")
    assert "is refused" in message and "kdray.models.cifar.resnet.ResNet" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "accuracy": 0.5}, "'epoch', 'accuracy' are not named tensors"),
        ({0: torch.zeros(2)}, "0 are not named tensors"),
        ([torch.zeros(2)], "holds a list"),
        ({}, "holds nothing, not a dict of named tensors"),
        (torch.zeros(2), "holds a Tensor"),
    ],
)
def test_no_state_dict(model, tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    assert message in refused(model, tmp_path / "w.pth")


def test_missing(model, tmp_path):
    (tmp_path / "resnet8_best.pth").touch()
    assert "Did you mean 'resnet8_best.pth'?" in refused(model, tmp_path / "resnet8_bset.pth")
    assert "nor does its folder" in refused(model, tmp_path / "nowhere" / "w.pth")
    assert "is a folder" in refused(model, tmp_path)


def test_digest(registry, model):
    digest = weights_digest(model)
    assert len(digest) == 64 and digest == weights_digest(model)
    model.bn1.running_mean[0] += 1e-3
    assert weights_digest(model) != digest
    assert weights_digest(model.bfloat16()) != digest
