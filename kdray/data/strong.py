"""Augmentations that change much: quarter turns, holes, and RandAugment."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from ..errors import ConfigError
from ..options import Options
from . import functional as TF
from .augment import Augmentation
from .color import brightness, contrast, saturation


class RotateOptions(Options):
    degrees: Literal[90, 180, 270] = Field(90, description="Counter-clockwise.")


class Rotate(Augmentation):
    """Quarter turns: every pixel is kept, and nothing is drawn. Sides of a picture that is not square change places."""

    Options = RotateOptions

    def __call__(self, images, u):
        return images.rot90(self.options.degrees // 90, (2, 3)).contiguous()


class CutoutOptions(Options):
    size: int = Field(gt=0, description="Pixels of the square's sides.")
    value: int = Field(127, ge=0, le=255, description="What all channels of the hole become.")


class Cutout(Augmentation):
    """A square hole with its middle at a uniform pixel: near an edge, part of it lies outside (DeVries, Taylor, 2017).

    The paper makes the hole 0 after normalisation, the mean colour; the default is the middle of the range.
    """

    Options = CutoutOptions
    draws = 2

    def __call__(self, images, u):
        inside = []
        for number, length in zip(u.unbind(1), images.shape[-2:]):
            first = (number * length).long()[:, None] - self.options.size // 2
            pixels = torch.arange(length, device=images.device)
            inside.append((pixels >= first) & (pixels < first + self.options.size))  # (B, length)
        rows, columns = inside
        return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], self.options.value)


class RandAugmentOptions(Options):
    n: int = Field(2, ge=1, description="Operations that each picture goes through, one after the other.")
    magnitude: int = Field(9, ge=0, le=30, description="Strength of all of them; 30 is the strongest.")


def _affine(images, angle=0.0, right=0, down=0, shear=(0.0, 0.0), center=None):
    return TF.affine(images, angle, [right, down], 1.0, [math.degrees(math.atan(x)) for x in shear], center=center)


def _color(step, images, m):
    return step(images, torch.full((len(images),), 1 + 0.9 * m, device=images.device))


# Of (pictures, strength m from −1 to 1): where m has a sign, either is as likely.
SIGNED = [
    lambda images, m: _affine(images, shear=(0.3 * m, 0.0), center=[0, 0]),
    lambda images, m: _affine(images, shear=(0.0, 0.3 * m), center=[0, 0]),
    lambda images, m: _affine(images, right=int(150 / 331 * images.shape[3] * m)),
    lambda images, m: _affine(images, down=int(150 / 331 * images.shape[2] * m)),
    lambda images, m: TF.rotate(images, 30.0 * m),
    lambda images, m: _color(brightness, images, m),
    lambda images, m: _color(saturation, images, m),
    lambda images, m: _color(contrast, images, m),
    lambda images, m: TF.adjust_sharpness(images, 1 + 0.9 * m),
]
UNSIGNED = [
    lambda images, m: images,
    lambda images, m: TF.posterize(images, round(8 - 4 * m)),
    lambda images, m: TF.solarize(images, 255 * (1 - m)),
    lambda images, m: TF.autocontrast(images),
    lambda images, m: TF.equalize(images),
]


class RandAugment(Augmentation):
    """`n` operations drawn from fourteen, at one strength (Cubuk et al., 2019): torchvision's list and ranges.

    Shears, shifts and turns (up to 0.3, 150/331 of the side, 30°), brightness, colour, contrast and sharpness (factors
    up to 1 ± 0.9), each to either side; posterize (down to 4 bits), solarize, autocontrast, equalize; and nothing.
    """

    Options = RandAugmentOptions

    def __init__(self, options):
        super().__init__(options)
        self.draws = 2 * options.n

    def __call__(self, images, u):
        if images.shape[1] not in (1, 3):
            raise ConfigError(
                f"rand_augment changes colours: it needs pictures of 1 or 3 channels, not {images.shape[1]}"
            )
        strength, count = self.options.magnitude / 30, len(SIGNED) + len(UNSIGNED)
        for which, sign in u.reshape(len(u), -1, 2).permute(1, 2, 0):
            kind = (which * count).long()
            # 2 · operation + side: pictures of one number go together.
            key = 2 * kind + ((kind < len(SIGNED)) & (sign < 0.5))
            made = images.clone()
            for number in key.unique().tolist():
                rows = (key == number).nonzero()[:, 0]
                step = (SIGNED + UNSIGNED)[number // 2]
                made[rows] = step(images[rows], -strength if number % 2 else strength)
            images = made
        return images
