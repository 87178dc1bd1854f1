"""Channels go where they matter least, and what is left can be built again from its widths alone."""

import pytest
import torch
from torch import nn

from kdray.config.schema import ModelConfig
from kdray.errors import ConfigError
from kdray.models import prune as module
from kdray.models.build import build_model
from kdray.models.prune import narrow, prune, widths
from kdray.registry import Registry


def network(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(model=name, **options), Registry.default(), 10, 3).model


def head_of(model: nn.Module) -> nn.Module:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]


def filled(model: nn.Module) -> nn.Module:
    """As after training: statistics and weights of normalisations that are not all alike."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5)
        assert name
    return model.eval()


def test_the_channels_that_do_nothing_go():
    model, pictures = filled(network("convnet", widths=[8, 16])), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for stage in model.stages:
            dead = torch.randperm(stage.conv.out_channels)[: stage.conv.out_channels // 2]
            stage.conv.weight[dead], stage.bn.weight[dead], stage.bn.bias[dead] = 0.0, 0.0, 0.0
        before = model(pictures)
    prune(model, 0.5, head_of(model), pictures, "convnet")
    assert [stage.conv.out_channels for stage in model.stages] == [4, 8]
    torch.testing.assert_close(model(pictures), before)


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "torchvision/resnext50_32x4d"])
def test_what_is_left_is_built_again(name, share):
    """Residual, wide, plain, depthwise and grouped ones."""
    model, pictures = filled(network(name)), torch.randn(2, 3, 32, 32)
    full = sum(p.numel() for p in model.parameters())
    prune(model, share, head_of(model), pictures, name)
    left = widths(network(name), model, pictures, name)
    again = network(name)
    narrow(again, left, name)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(pictures), model.eval()(pictures))
    assert again(pictures).shape == (2, 10)
    count = sum(p.numel() for p in again.parameters())
    assert 0.8 * (1 - share) ** 2 < count / full < 1.25 * (1 - share) ** 2 + 0.05
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_it_is_the_same_each_time():
    made = []
    for _ in range(2):
        model = filled(network("resnet8"))
        torch.manual_seed(len(made))  # whatever is drawn beside it
        for value in model.state_dict().values():
            value.copy_(torch.sin(torch.arange(value.numel())).reshape(value.shape))
        prune(model, 0.3, head_of(model), torch.randn(2, 3, 16, 16), "resnet8")
        made.append(model.state_dict())
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_networks_that_it_cannot_do(name):
    model, pictures = network(name), torch.randn(2, 3, 32, 32)
    with pytest.raises(ConfigError, match=f"{name} cannot be pruned by Torch-Pruning"):
        prune(model, 0.5, head_of(model), pictures, name)


def test_a_layer_that_it_cannot_do():
    class Normed(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 10))

        def forward(self, x):
            return super().forward(x.flatten(1))

    model, pictures = Normed(), torch.randn(2, 3, 2, 2)
    prune(model, 0.5, model[2], pictures, "normed")
    with pytest.raises(ConfigError, match=r"cannot be built again as it is pruned: .*'1', a LayerNorm"):
        widths(Normed(), model, pictures, "normed")


def test_nothing_to_take():
    model, pictures = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), torch.randn(2, 3, 2, 2)
    prune(model, 0.5, model[1], pictures, "linear")
    with pytest.raises(ConfigError, match="linear has no layer that could lose a channel"):
        widths(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), model, pictures, "linear")


@pytest.mark.parametrize(
    "given, what",
    [
        ({"stages.0.con": [2, 3]}, "no layer 'stages.0.con'.*Did you mean 'stages.0.conv'"),
        ({"stages.0.conv": [2]}, r"'stages.0.conv' of \[4, 3\] cannot become \[2\]"),
        ({"stages.0.conv": [5, 3]}, r"'stages.0.conv' of \[4, 3\] cannot become \[5, 3\]"),
        ({"stages": [2]}, "'stages', a Sequential, cannot be made narrower"),
    ],
)
def test_widths_of_another_network(given, what):
    with pytest.raises(ConfigError, match=what):
        narrow(network("convnet", widths=[4]), given, "model convnet")


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'kdray\[prune\]'"):
        prune(network("convnet", widths=[4]), 0.5, None, None, "convnet")
