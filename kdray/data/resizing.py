"""Augmentations that change the size of pictures: what makes one size of pictures of many."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ..errors import ConfigError
from ..options import Options
from .augment import Augmentation

Pixels = Annotated[int, Field(gt=0)]
Size = Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]
Positive = Annotated[float, Field(gt=0)]


def _pair(size: int | list[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


class ResizeOptions(Options):
    size: Size = Field(description="Length of the shorter side in pixels, or [height, width].")


class Resize(Augmentation):
    """Bilinear, with anti-aliasing, as torchvision does it."""

    Options = ResizeOptions

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        size = self.options.size
        return TF.resize(images, [size] if isinstance(size, int) else list(size), antialias=True)


class CenterCropOptions(Options):
    size: Size = Field(description="Side of the square in pixels, or [height, width].")


class CenterCrop(Augmentation):
    """The middle of the picture. Raises ConfigError for pictures that are smaller."""

    Options = CenterCropOptions

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        height, width = _pair(self.options.size)
        if height > images.shape[2] or width > images.shape[3]:
            raise ConfigError(
                f"center_crop to {height}×{width} of a picture of {images.shape[2]}×{images.shape[3]}: put resize before"
            )
        return TF.center_crop(images, [height, width])


class RandomResizedCropOptions(Options):
    size: Size = Field(description="Side of the square that comes out in pixels, or [height, width].")
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(
        [0.08, 1.0], description="Smallest and largest share of the picture's area that is cut out."
    )
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(
        [3 / 4, 4 / 3], description="Smallest and largest width / height of the part that is cut out."
    )

    @model_validator(mode="after")
    def ordered(self):
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [smallest, largest]; it is [{low}, {high}]")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the area, at most 1; it is {self.scale}")
        return self


class RandomResizedCrop(Augmentation):
    """A part of random area and aspect, resized (Szegedy et al., CVPR 2015), with torchvision's law of the draws."""

    Options = RandomResizedCropOptions
    TRIES = 10
    draws = 2 * TRIES + 2

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        height, width = images.shape[2:]
        size = _pair(self.options.size)
        boxes = [self._box(height, width, row) for row in u.tolist()]
        parts = (image[None, :, y : y + h, x : x + w] for image, (y, x, h, w) in zip(images, boxes))
        return torch.cat([TF.resize(part, size, antialias=True) for part in parts])

    def _box(self, height: int, width: int, u: list[float]) -> tuple[int, int, int, int]:
        """(top, left, height, width): the first of ten tries that fits, else the largest middle part of a fair aspect."""
        (small, large), (narrow, wide) = self.options.scale, self.options.ratio
        for area, aspect in zip(u[0:-2:2], u[1:-2:2]):
            area = height * width * (small + (large - small) * area)
            aspect = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * aspect)
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return int(u[-2] * (height - h + 1)), int(u[-1] * (width - w + 1)), h, w
        aspect = min(max(width / height, narrow), wide)
        h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
        return (height - h) // 2, (width - w) // 2, h, w
