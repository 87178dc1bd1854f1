"""Augmentations as pure functions of pictures and uniform numbers, and the pipeline that hands them these numbers."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import PluginError
from ..options import Options
from .views import uniform


class Augmentation:
    """Base class of an augmentation.

    It must be a pure function of its two arguments, row by row: a picture may come alone or in any batch, and must
    come out the same.
    """

    Options: ClassVar[type[Options]] = Options
    version: ClassVar[int] = 1
    """Raised when the result changes, so that teacher caches made with the old one are refused."""
    draws: ClassVar[int] = 0
    """Uniform numbers that each picture needs; 0 for what is not random."""

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """images: uint8 (B, C, H, W); u: float64 (B, draws) in [0, 1), same device. Returns uint8 (B, C, H', W')."""
        raise NotImplementedError


class Pipeline:
    """Augmentations in order, each with numbers of its own: the picture of sample i in view v.

    steps: (name, augmentation) pairs.
    """

    def __init__(self, steps: list[tuple[str, Augmentation]], seed: int):
        self.steps, self.seed = steps, seed

    def __call__(self, images: Tensor, ids: Tensor, view: int) -> Tensor:
        """images: uint8 (B, C, H, W); ids: int64 (B,), the samples' original indices, same device."""
        for place, (name, augmentation) in enumerate(self.steps):
            result = augmentation(images, uniform(self.seed, view, ids, place, augmentation.draws))
            if result.dtype != torch.uint8 or result.shape[:2] != images.shape[:2] or result.dim() != 4:
                raise PluginError(
                    f"augmentation '{name}' made {result.dtype} {tuple(result.shape)} of {tuple(images.shape)}; "
                    "expected torch.uint8 (B, C, height, width)"
                )
            images = result
        return images

    def describe(self) -> list[tuple[str, int, dict]]:
        """(name, version, options) of each step: pipelines that say the same make the same pictures of one seed."""
        return [(name, step.version, step.options.model_dump()) for name, step in self.steps]


class CropOptions(Options):
    padding: int = Field(4, ge=0, description="Black pixels put around the picture before it is cut to its size again.")


class Crop(Augmentation):
    """The picture shifted by up to `padding` pixels, every shift equally likely."""

    Options = CropOptions
    draws = 2

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        pad, (height, width) = self.options.padding, images.shape[2:]
        top, left = (u * (2 * pad + 1)).long().unbind(1)
        # All shifts as one view without copies; one indexing picks each picture's own.
        shifts = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        return shifts[torch.arange(len(images), device=images.device), :, top, left]


class FlipOptions(Options):
    p: float = Field(0.5, ge=0, le=1, description="Share of the pictures that are mirrored left to right.")


class Flip(Augmentation):
    """Mirrors pictures left to right."""

    Options = FlipOptions
    draws = 1

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        return torch.where((u < self.options.p)[:, :, None, None], images.flip(3), images)
