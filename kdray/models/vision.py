"""torchvision's classification networks as `torchvision/<name>`, with their published weights."""

from __future__ import annotations

import os
import pickle
import re
from functools import partial
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision import models

from ..errors import ConfigError
from ..specs import Layers, ModelSpec

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
            weights=tuple(sorted(models.get_model_weights(name).__members__, key=lambda w: (w != "DEFAULT", w))),
            normalize=partial(normalize, name),
        )
        for name in models.list_models(module=models)
    ]


def build(name: str, *, num_classes: int, in_channels: int, weights: str | None = None, options=None) -> nn.Module:
    """torchvision's network, in its initial state or with published weights. Auxiliary classifiers are taken off."""
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
