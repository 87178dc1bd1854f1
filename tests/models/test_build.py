import sys
from urllib.error import URLError

import pytest
import torch
from torchvision import models

from kdray import ConfigError
from kdray.config.schema import StudentConfig
from kdray.models.build import build_model
from kdray.models.taps import Tapped, probe

ALL = frozenset({"embedding", "features", "preactivations", "head"})
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(registry, num_classes=10, in_channels=3, **section):
    return build_model(StudentConfig(**section), registry, num_classes, in_channels)


def test_convnet(registry):
    built = build(registry, in_channels=1, model="convnet", widths=[4, 8, 6])
    shapes = probe(Tapped(built.model, built.layers, ALL), torch.zeros(2, 1, 8, 8))
    assert shapes.features == shapes.preactivations == ((4, 8, 8), (8, 4, 4), (6, 2, 2))
    assert shapes.embedding == (6,) and shapes.logits == (10,) and built.normalize is None


def test_layers_of_the_config_come_first(registry):
    built = build(registry, model="resnet8", layers={"features": ["layer3"], "embedding": "avgpool"})
    assert built.layers.features == ("layer3",) and built.layers.embedding == "avgpool" and built.layers.head == "fc"
    assert len(built.layers.preactivations) == 4


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": "convnet", "widths": []}, "convnet: widths: .*at least 1 item"),
        ({"model": "convnet", "width": [4]}, "convnet: width: Extra inputs"),
        ({"model": "resnet8", "depth": 3}, "resnet8: depth: Extra inputs"),
        ({"model": "resnet8", "weights": "DEFAULT"}, "resnet8 has no published weights 'DEFAULT'. It has none"),
        ({"model": "torchvision/resnet18", "weights": "DEFAUL"}, "Did you mean 'DEFAULT'"),
        ({"model": "torchvision/resnet18", "weights": "DEFAULT"}, "1000 classes apart; the data has 10"),
        ({"model": "torchvision/resnet18", "weights": "DEFAULT", "checkpoint": "x.pth"}, "both given"),
    ],
)
def test_wrong_sections(registry, section, message):
    with pytest.raises(ConfigError, match=message):
        build(registry, **section)


FAMILIES = {
    "resnet18": (512, (64, 64, 128, 256, 512)),
    "resnext50_32x4d": (2048, (64, 256, 512, 1024, 2048)),
    "wide_resnet50_2": (2048, (64, 256, 512, 1024, 2048)),
    "densenet121": (1024, (64, 256, 512, 1024, 1024)),
    "regnet_y_400mf": (440, (32, 48, 104, 208, 440)),
    "shufflenet_v2_x0_5": (1024, (24, 48, 96, 192)),
    "convnext_tiny": (768, (96, 96, 192, 384, 768)),
    "mobilenet_v2": (1280, (32, 24, 32, 96, 320)),
    "efficientnet_b0": (1280, (32, 24, 40, 112, 320)),
    "googlenet": (1024, ()),
    "vit_b_32": (768, ()),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision about its own initial weights
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision(registry, name):
    # Shapes only, without arithmetic; regnet computes its widths with tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        built = build(registry, model=f"torchvision/{name}")
        wants = {"embedding", "head"} | {kind for kind in ("features", "preactivations") if getattr(built.layers, kind)}
        size = 224 if name.startswith("vit") else 64
        tapped = Tapped(built.model, built.layers, frozenset(wants))
        shapes = probe(tapped, torch.zeros(2, 3, size, size))
        assert isinstance(tapped(torch.zeros(2, 3, size, size)).logits, torch.Tensor)
    width, channels = FAMILIES[name]
    assert shapes.embedding == (width,) and tuple(f[0] for f in shapes.features) == channels
    assert shapes.preactivations in ((), shapes.features)


def test_torchvision_preactivations_are_not_overwritten(registry):
    torch.manual_seed(0)
    built = build(registry, model="torchvision/resnet18")
    out = Tapped(built.model, built.layers, ALL)(torch.randn(2, 3, 32, 32))
    for before, after in zip(out.preactivations[1:], out.features[1:]):
        assert before.min() < 0 and torch.equal(before.relu(), after)


def test_torchvision_has_the_networks_and_weights_that_are_written_down(registry):
    there = {name: set(models.get_model_weights(name).__members__) for name in models.list_models(module=models)}
    ours = {name: set(spec.weights) for name, spec in registry.models.items() if name.startswith("torchvision/")}
    assert ours == {f"torchvision/{name}": weights for name, weights in there.items()}


def test_torchvision_weights(registry, tmp_path, monkeypatch):
    spec = registry.get("models", "torchvision/shufflenet_v2_x0_5")
    assert spec.weights == ("DEFAULT", "IMAGENET1K_V1") and spec.normalize("DEFAULT") == (MEAN, STD)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    section = {"model": spec.name, "weights": "DEFAULT"}
    file = tmp_path / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    with pytest.raises(ConfigError, match=r"is not there and could not be downloaded.*no route") as error:
        build(registry, 1000, **section)
    assert str(file) in str(error.value)

    file.write_bytes(b"PK and nothing more")
    with pytest.raises(ConfigError, match="could not be read"):
        build(registry, 1000, **section)

    made = build(registry, 1000, model=spec.name).model
    torch.save(made.state_dict(), file)
    built = build(registry, 1000, **section)
    assert built.normalize == (MEAN, STD)
    assert torch.equal(built.model.fc.weight, made.fc.weight)


def no_network(url, *_, **__):
    raise URLError("no route to host")


def test_torchvision_wants_colour(registry):
    with pytest.raises(ConfigError, match="3 channels; the data has 1"):
        build(registry, in_channels=1, model="torchvision/resnet18")


FACTORIES = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels=3, width=4):
        super().__init__(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))

def with_any(**options):
    return Net(**options)

def fixed():
    return Net(7)

def needs(depth, num_classes):
    return Net(num_classes)

def fails(num_classes):
    raise RuntimeError("no such depth")

def nothing():
    pass

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "my_failing.py").write_text("x = 1\nraise ValueError('no good')\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_networks", "my_broken", "my_failing"):
        sys.modules.pop(name, None)


def test_a_factory_of_ones_own(registry, here):
    built = build(registry, 5, 1, model="my_networks:Net", width=6, layers={"features": ["1"]})
    shapes = probe(Tapped(built.model, built.layers, ALL - {"preactivations"}), torch.zeros(2, 1, 8, 8))
    assert shapes.logits == (5,) and shapes.embedding == (6,) and shapes.features == ((6, 6, 6),)
    assert build(registry, 5, 3, model="my_networks:with_any").model[4].out_features == 5
    assert build(registry, 5, 3, model="my_networks:fixed").model[4].out_features == 7
    given = StudentConfig(model="my_networks:Net", num_classes=9)
    assert build_model(given, registry, 5, 3).model[4].out_features == 9


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": "my_networks:Nett"}, "'Nett' is not in module 'my_networks'. Did you mean 'Net'"),
        ({"model": "my_networks:number"}, "'number' is not callable"),
        ({"model": "my_networks:"}, "write it as module:factory"),
        ({"model": "my_netwroks:Net"}, "there is no module 'my_netwroks' in "),
        ({"model": "my_broken:Net"}, "importing 'my_broken' failed.*a_package_that_is_not_there.*my_broken.py:1"),
        ({"model": "my_failing:Net"}, "importing 'my_failing' failed: ValueError: no good .*my_failing.py:2"),
        ({"model": "my_networks:Net", "widht": 3}, "takes no argument 'widht'. Did you mean 'width'"),
        ({"model": "my_networks:needs"}, "needs the argument 'depth'"),
        ({"model": "my_networks:fails"}, "RuntimeError: no such depth .*my_networks.py:"),
        ({"model": "my_networks:nothing"}, "returned a NoneType, not an nn.Module"),
        ({"model": "my_networks:Net", "weights": "DEFAULT"}, "no published weights"),
    ],
)
def test_wrong_factories(registry, here, section, message):
    with pytest.raises(ConfigError, match=message):
        build(registry, **section)
