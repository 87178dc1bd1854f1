"""torchvision's classification networks as `torchvision/<name>`, with their published weights."""

from __future__ import annotations

import os
import pickle
import re
from functools import partial
from urllib.parse import urlparse

import torch
from torch import nn

from ..errors import ConfigError
from ..specs import Layers, ModelSpec

V1, V2, SWAG = "IMAGENET1K_V1", "IMAGENET1K_V2", ("IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1")

# Published weights, and the networks that have them. Written down, for torchvision takes two seconds to import (torch's
# compiler comes with it); a test holds this against the installed one.
_PUBLISHED = {
    (V1,): """
        alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
        densenet201 efficientnet_b0 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
        efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet
        inception_v3 maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v3_small resnet18 resnet34
        resnext101_64x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
        squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
        vgg13_bn vgg16_bn vgg19 vgg19_bn vit_b_32 vit_l_32
    """,
    (V1, V2): """
        efficientnet_b1 mobilenet_v2 mobilenet_v3_large regnet_x_16gf regnet_x_1_6gf regnet_x_32gf
        regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_1_6gf regnet_y_3_2gf regnet_y_400mf
        regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet50 resnext101_32x8d resnext50_32x4d
        wide_resnet101_2 wide_resnet50_2
    """,
    ("IMAGENET1K_FEATURES", V1): "vgg16",
    SWAG: "regnet_y_128gf vit_h_14",
    (*SWAG, V1): "vit_b_16 vit_l_16",
    (*SWAG, V1, V2): "regnet_y_16gf regnet_y_32gf",
}
WEIGHTS = {name: weights for weights, names in _PUBLISHED.items() for name in names.split()}

# Blocks in the four stages of the residual networks, by depth.
RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# Where the stem and the stages of other families end.
STAGES = {
    "densenet": ("features.relu0", *(f"features.denseblock{i}" for i in range(1, 5))),
    "regnet": ("stem", *(f"trunk_output.block{i}" for i in range(1, 5))),
    "shufflenet": ("conv1", "stage2", "stage3", "stage4"),
    "convnext": ("features.0", "features.1", "features.3", "features.5", "features.7"),
    "mobilenet_v2": ("features.0.2", "features.3", "features.6", "features.13", "features.17"),
    "efficientnet_b": ("features.0", "features.2", "features.3", "features.5", "features.7"),
}


def specs() -> list[ModelSpec]:
    """One spec a network; nothing is built."""
    return [
        ModelSpec(
            name=f"torchvision/{name}",
            build=partial(build, name),
            layers=_layers(name),
            summary=f"torchvision's {name}, for RGB pictures",
            weights=("DEFAULT", *WEIGHTS[name]),
            normalize=partial(normalize, name),
        )
        for name in sorted(WEIGHTS)
    ]


def build(name: str, *, num_classes: int, in_channels: int, weights: str | None = None, options=None) -> nn.Module:
    """torchvision's network, in its initial state or with published weights. Auxiliary classifiers are taken off."""
    from torchvision import models

    if in_channels != 3:
        raise ConfigError(f"model torchvision/{name} takes pictures of 3 channels; the data has {in_channels}.")
    if weights is None:
        return _without_auxiliaries(models.get_model(name, weights=None, num_classes=num_classes))
    entry = models.get_model_weights(name)[weights]
    classes = len(entry.meta["categories"])
    if classes != num_classes:
        raise ConfigError(
            f"weights {weights} of torchvision/{name} tell {classes} classes apart; the data has {num_classes}. "
            f"Leave `weights` out, or give a `checkpoint` that was trained on this data."
        )
    try:
        return _without_auxiliaries(models.get_model(name, weights=entry))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(entry.url).path))
        problem = "could not be read" if os.path.exists(file) else "is not there and could not be downloaded"
        raise ConfigError(
            f"weights {weights} of torchvision/{name}: {file} {problem} ({error}). "
            f"Put the file there; its address is {entry.url}"
        ) from error


def normalize(name: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the named weights were trained with."""
    from torchvision import models

    transforms = models.get_model_weights(name)[weights].transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _layers(name: str) -> Layers:
    if depth := re.match(r"(?:wide_)?resne[x]?t(\d+)", name):
        # A block's one ReLU runs several times; the last run is over the sum.
        ends = (f"layer{i + 1}.{n - 1}.relu:input" for i, n in enumerate(RESNET_BLOCKS[int(depth[1])]))
        return Layers("fc", features=("relu", *(f"layer{i}" for i in range(1, 5))), preactivations=("relu", *ends))
    return Layers(features=next((maps for family, maps in STAGES.items() if name.startswith(family)), ()))


def _without_auxiliaries(model: nn.Module) -> nn.Module:
    """Inception and GoogLeNet return several outputs in training mode unless their side classifiers are gone."""
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        for side in {"AuxLogits", "aux1", "aux2"} & {child for child, _ in model.named_children()}:
            setattr(model, side, None)
    return model
