"""Augmentations: deterministic functions of pictures and uniform numbers. Where the numbers come from: views.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..blame import blaming
from ..errors import PluginError
from ..options import Options
from . import functional as TF
from .source import Source
from .views import uniform

MOST_VARIANTS = 1024
"""More pictures of a sample than these are not numbered: few of them would be met twice."""


class Augmentation:
    """Base class. A picture must come out the same alone and in any batch: it depends on its own rows alone.

    `version` changes whenever the same numbers give other pictures; `draws` is how many numbers a picture needs.

    One that makes a limited number of pictures of a sample may say so, for caches of a teacher's answers to each of
    them: `variants`, with `variant` and its inverse `numbers`.
    """

    Options: ClassVar[type[Options]] = Options
    version: ClassVar[int] = 1
    draws: ClassVar[int] = 0

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """images: uint8 (B, C, H, W), which may be a single picture when sizes differ · u: (B, draws) in [0, 1).

        Returns uint8 (B, C, H', W'), and leaves `images` as they are.
        """
        raise NotImplementedError

    @property
    def variants(self) -> int | None:
        """How many pictures it can make of one; None: too many to number."""
        return None if self.draws else 1

    def variant(self, u: Tensor) -> Tensor:
        """Which of its variants numbers u (B, draws) make: (B,) int64, 0 ≤ variant < variants."""
        return torch.zeros(len(u), dtype=torch.int64, device=u.device)

    def numbers(self, variant: Tensor) -> Tensor:
        """Numbers (B, draws) that make these variants (B,)."""
        return variant.new_empty(len(variant), 0, dtype=torch.float64)


class CropOptions(Options):
    padding: int = Field(
        4, ge=1, description="Pixels of black around the picture before a window of its own size is cut."
    )


class Crop(Augmentation):
    """A window of the picture's size at a uniform place of the padded picture, as torchvision's RandomCrop."""

    Options = CropOptions
    draws = 2

    def __init__(self, options):
        super().__init__(options)
        self.places = 2 * options.padding + 1  # of the window, in each direction

    @property
    def variants(self):
        return self.places**2

    def variant(self, u):
        top, left = (u * self.places).long().unbind(1)
        return top * self.places + left

    def numbers(self, variant):
        return (torch.stack([variant // self.places, variant % self.places], dim=1) + 0.5) / self.places

    def __call__(self, images, u):
        pad, (height, width) = self.options.padding, images.shape[-2:]
        top, left = (u * self.places).long().unbind(1)
        padded = F.pad(images, (pad, pad, pad, pad))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
        return windows[torch.arange(len(images), device=images.device), :, top, left]


class FlipOptions(Options):
    p: float = Field(0.5, ge=0, le=1, description="Probability.")


class Flip(Augmentation):
    """Mirrored left to right with probability p."""

    Options = FlipOptions
    draws = 1
    variants = 2

    def variant(self, u):
        return (u[:, 0] < self.options.p).long()

    def numbers(self, variant):
        return torch.where(variant == 1, 0.0, 1.0).double()[:, None]  # 1 is above every p, also where p is 1

    def __call__(self, images, u):
        columns = torch.arange(images.shape[-1], device=images.device)
        columns = torch.where(u < self.options.p, columns.flip(0), columns)  # (B, W)
        return images.gather(3, columns[:, None, None, :].expand(images.shape))


class SizeOptions(Options):
    size: int = Field(gt=0, description="Pixels.")


class Resize(Augmentation):
    """The shorter side becomes `size`, with anti-aliasing."""

    Options = SizeOptions

    def __call__(self, images, u):
        return TF.resize(images, [self.options.size], antialias=True)


class CenterCrop(Augmentation):
    """The middle `size` × `size`; smaller pictures are padded with black."""

    Options = SizeOptions

    def __call__(self, images, u):
        return TF.center_crop(images, [self.options.size])


class RandomResizedCropOptions(Options):
    size: int = Field(gt=0, description="Pixels of the result's sides.")
    min_area: float = Field(0.08, gt=0, le=1, description="Least share of the picture's area.")
    max_ratio: float = Field(4 / 3, ge=1, description="Largest ratio of width to height, and of height to width.")


class RandomResizedCrop(Augmentation):
    """A window of uniform area share and log-uniform aspect ratio, resized to `size` × `size` (the crop of Inception).

    The ratio is drawn from those at which the window fits into the picture, so that nothing is tried again and every
    picture takes four numbers. Where none fits (a long picture, a large share), the window ends at the picture's edges.
    """

    Options = RandomResizedCropOptions
    draws = 4

    def __call__(self, images, u):
        o, (height, width) = self.options, images.shape[-2:]
        area = (o.min_area + (1 - o.min_area) * u[:, 0]) * height * width
        low, high = (area / height**2).clamp(min=1 / o.max_ratio), (width**2 / area).clamp(max=o.max_ratio)
        ratio = low * (high / low) ** u[:, 1]
        h = (area / ratio).sqrt().round().clamp(1, height)
        w = (area * ratio).sqrt().round().clamp(1, width)
        top, left = (u[:, 2] * (height - h + 1)).floor(), (u[:, 3] * (width - w + 1)).floor()
        boxes = torch.stack([top, left, h, w], dim=1).long().tolist()
        size = [o.size, o.size]
        return torch.stack([TF.resized_crop(image, *box, size, antialias=True) for image, box in zip(images, boxes)])


class Pipeline:
    """Augmentations in order, with their numbers."""

    def __init__(self, steps: Sequence[tuple[str, Augmentation]], seed: int, after: Pipeline | None = None):
        self.steps, self.seed, self.after = list(steps), seed, after
        """after: another pipeline, with numbers of its own, whose pictures this one takes."""

    def __call__(self, images: Tensor, ids: Tensor, view: int) -> Tensor:
        """images uint8 (B, C, H, W) of the samples `ids` (B,), as they look in `view`. `ids` may stay on the CPU."""
        if self.after:
            images = self.after(images, ids, view)
        return self._apply(images, self._draw(ids, view))

    @property
    def variants(self) -> int | None:
        """How many pictures of a sample there are; None: too many to number."""
        numbers = [step.variants for _, step in self.steps] + [self.after.variants if self.after else 1]
        return None if None in numbers or math.prod(numbers) > MOST_VARIANTS else math.prod(numbers)

    def variant(self, ids: Tensor, view: int) -> Tensor:
        """Which picture of each sample `ids` (B,) its view is: (B,), 0 ≤ variant < variants."""
        found = self.after.variant(ids, view) if self.after else torch.zeros_like(ids)
        for (_, step), u in zip(self.steps, self._draw(ids, view)):
            found = found * step.variants + step.variant(u)
        return found

    def make(self, images: Tensor, variant: Tensor) -> Tensor:
        """Those pictures (B,) of `images` uint8 (B, C, H, W)."""
        numbers = []
        for _, step in reversed(self.steps):
            numbers.append(step.numbers(variant % step.variants))
            variant = variant // step.variants
        if self.after:
            images = self.after.make(images, variant)
        return self._apply(images, reversed(numbers))

    def _draw(self, ids: Tensor, view: int) -> Iterator[Tensor]:
        """The numbers of each step: (B, draws)."""
        for place, (_, step) in enumerate(self.steps):
            yield uniform(self.seed, view, ids, place, step.draws)

    def _apply(self, images: Tensor, numbers: Iterable[Tensor]) -> Tensor:
        for (name, step), u in zip(self.steps, numbers):
            with blaming(f"data: the augmentation {name} failed on {tuple(images.shape)}"):
                made = step(images, u.to(images.device, non_blocking=True))
            if made.dtype != torch.uint8 or made.dim() != 4 or made.shape[:2] != images.shape[:2]:
                raise PluginError(
                    f"augmentation '{name}' made {made.dtype} {tuple(made.shape)} of {tuple(images.shape)}; "
                    "expected torch.uint8 (B, C, height, width)"
                )
            images = made
        return images

    def seeds(self) -> list[int]:
        """What the draws follow from, beside view and sample."""
        return [*(self.after.seeds() if self.after else []), self.seed]

    def read(self, source: Source, ids: Tensor, view: int) -> list[Tensor]:
        """The same of pictures that are read now; where their sizes differ, each is made alone."""
        pictures = [source.read(i) for i in ids.tolist()]
        if len({picture.shape for picture in pictures}) == 1:
            return list(self(torch.stack(pictures), ids, view))
        return [self(picture[None], ids[i : i + 1], view)[0] for i, picture in enumerate(pictures)]

    def describe(self) -> list[tuple[str, int, dict]]:
        """(name, version, options) of each step: what a cached teacher must have been given too. As JSON knows it, in
        which a cache remembers it."""
        before = self.after.describe() if self.after else []
        return before + [(name, step.version, step.options.model_dump(mode="json")) for name, step in self.steps]
