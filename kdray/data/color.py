"""Augmentations of colours: brightness, contrast, saturation and hue, one by one or together."""

from __future__ import annotations

from itertools import permutations

import torch
from pydantic import Field
from torch import Tensor

from ..options import Options
from . import functional as TF
from .augment import Augmentation

ORDERS = torch.tensor(list(permutations(range(4))))


def grey(images: Tensor) -> Tensor:
    """(B, 1, H, W), uint8. Pictures of other than three channels have no colour: the first channel."""
    return TF.rgb_to_grayscale(images) if images.shape[1] == 3 else images[:, :1]


def blend(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """factor · images + (1 − factor) · other, each picture with a factor (B,) of its own, cut to 0 … 255."""
    factor = factor.float()[:, None, None, None]
    return (images * factor + other * (1 - factor)).clamp(0, 255).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return blend(images, 0.0, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    # The sum of whole numbers is exact in float64, and so the same in whatever batch.
    mean = grey(images).double().mean(dim=(1, 2, 3), keepdim=True)
    return blend(images, mean.float(), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return blend(images, grey(images), factor) if images.shape[1] == 3 else images


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """turn (B,) from −0.5 to 0.5: parts of the colour circle."""
    if images.shape[1] != 3:
        return images
    return torch.stack([TF.adjust_hue(image, by) for image, by in zip(images, turn.tolist())])


class ColorJitterOptions(Options):
    brightness: float = Field(0.4, ge=0, description="The factor is uniform from 1 − this, at least 0, to 1 + this.")
    contrast: float = Field(0.4, ge=0, description="The same for the contrast.")
    saturation: float = Field(0.4, ge=0, description="The same for the saturation.")
    hue: float = Field(0.1, ge=0, le=0.5, description="Largest turn of the colour circle, as a part of it.")
    p: float = Field(0.8, ge=0, le=1, description="Probability that the picture is changed at all.")


class ColorJitter(Augmentation):
    """Brightness, contrast, saturation and hue by uniform factors, in an order drawn for each picture.

    The ranges are those of torchvision's ColorJitter, the defaults those of MoCo v2.
    """

    Options = ColorJitterOptions
    draws = 6

    def __call__(self, images, u):
        o, made = self.options, images.clone()
        steps = [brightness, contrast, saturation, hue]
        sides = [(max(0.0, 1 - x), 1 + x) for x in (o.brightness, o.contrast, o.saturation)] + [(-o.hue, o.hue)]
        order = ORDERS.to(u.device)[(u[:, 4] * len(ORDERS)).long()]
        order[u[:, 5] >= o.p] = -1
        for place in range(len(steps)):
            for i, (step, (low, high)) in enumerate(zip(steps, sides)):
                rows = (order[:, place] == i).nonzero()[:, 0]
                if low < high and len(rows):
                    made[rows] = step(made[rows], low + (high - low) * u[rows, i])
        return made


class GrayscaleOptions(Options):
    p: float = Field(0.2, ge=0, le=1, description="Probability.")


class Grayscale(Augmentation):
    """Without colour, in as many channels as before, with probability p."""

    Options = GrayscaleOptions
    draws = 1

    def __call__(self, images, u):
        return torch.where(u[:, :, None, None] < self.options.p, grey(images), images)
