"""What the CIFAR networks share: the spec around a factory, and the published initial weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ...specs import Layers, ModelSpec


def spec(name: str, factory: Callable[[int, int], nn.Module], layers: Layers, summary: str) -> ModelSpec:
    """The spec of `factory(num_classes, in_channels)`, a network without options and without downloads."""
    return ModelSpec(name=name, build=partial(_build, factory), layers=layers, summary=summary)


def _build(factory, *, num_classes, in_channels, weights=None, options=None) -> nn.Module:
    return factory(num_classes, in_channels)


def init_weights(model: nn.Module, linear_std: float | None = None) -> None:
    """Convolutions from N(0, 2 / fan_out) (He et al., 2015), linear layers from N(0, linear_std²) where it is given.

    Biases become zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the groups' channels: (B, groups · C, H, W) becomes (B, C · groups, H, W)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
