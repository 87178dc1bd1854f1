"""Pictures made worse, in five severities: seven corruptions of CIFAR-10-C and ImageNet-C (Hendrycks and Dietterich,
ICLR 2019), with the constants of their scripts make_cifar_c.py and make_imagenet_c.py.

What differs from what the scripts make: the random numbers, which here follow from a seed, and bytes, which are
rounded where the scripts cut off. Gaussian blur is one of their four extra corruptions, the others are of the fifteen.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .views import stream, uniform

SEVERITIES = range(1, 6)
SMALL = 64
"""The shorter side, in pixels, up to which the constants of CIFAR-10-C are taken; above, those of ImageNet-C."""
TOGETHER = 1 << 22
"""Numbers of pictures that are made worse at a time: each needs some words of eight bytes."""


def corrupt(pictures: Tensor, ids: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """pictures: uint8 (B, C, H, W), left as they are · ids (B,): positions of the samples, by which noise is drawn.

    Returns the same shape; a sample looks alike in any batch and on any device, but for a rounded byte here and
    there."""
    small, large, change = CORRUPTIONS[name]
    constant = (small if min(pictures.shape[-2:]) <= SMALL else large)[severity - 1]
    key = stream(seed, "corruption", name)
    parts = []
    for some, of in zip(*(x.split(max(1, TOGETHER // pictures[0].numel())) for x in (pictures, ids))):

        def draw(some=some, of=of) -> Tensor:
            return uniform(key, severity, of.to(some.device), 0, some[0].numel()).view(some.shape)

        parts.append(change(some, constant, draw))
    return torch.cat(parts)


Draw = Callable[[], Tensor]
"""Uniform numbers, fp64, of the shape of the pictures."""


def gaussian_noise(pictures: Tensor, scale: float, draw: Draw) -> Tensor:
    return _bytes(_shares(pictures) + scale * torch.special.ndtri(draw()))


def shot_noise(pictures: Tensor, photons: float, draw: Draw) -> Tensor:
    """A white pixel counts `photons` on average."""
    # A byte has 256 values, so that as many distributions are all there is. Laid end to end, the i-th shifted by i,
    # they are one rising sequence, in which every pixel's number of photons is found at once.
    rates = torch.arange(256, dtype=torch.float64, device=pictures.device) / 255 * photons
    counts = torch.arange(int(photons + 12 * photons**0.5 + 12), dtype=torch.float64, device=pictures.device)
    at_most = torch.special.gammaincc(counts + 1, rates[:, None])  # (256, counts): the probability of that many or less
    at_most[:, -1] = 1.0
    level = pictures.long()
    place = torch.searchsorted((at_most + torch.arange(256, device=pictures.device)[:, None]).view(-1), draw() + level)
    return _bytes((place - level * len(counts)) / photons)


def gaussian_blur(pictures: Tensor, sigma: float, draw: Draw) -> Tensor:
    reach = int(4 * sigma + 0.5)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=pictures.device)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = (weights / weights.sum()).view(1, 1, -1, 1)
    x = _shares(pictures).float().flatten(0, 1)[:, None]
    for turned, pad in ((kernel, (0, 0, reach, reach)), (kernel.mT, (reach, reach, 0, 0))):
        x = F.conv2d(F.pad(x, pad, mode="replicate"), turned)
    return _bytes(x.view(pictures.shape))


def brightness(pictures: Tensor, more: float, draw: Draw) -> Tensor:
    """Adds to the value of a pixel's hue, saturation and value: the largest of its channels."""
    x = _shares(pictures)
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return _bytes(torch.where(value > 0, x * brighter / value, brighter))


def contrast(pictures: Tensor, kept: float, draw: Draw) -> Tensor:
    """What is kept of the distance from a channel's mean over the picture."""
    x = _shares(pictures)
    mean = x.mean(dim=(2, 3), keepdim=True)
    return _bytes((x - mean) * kept + mean)


def jpeg_compression(pictures: Tensor, quality: int, draw: Draw) -> Tensor:
    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(pictures, change)


def pixelate(pictures: Tensor, share: float, draw: Draw) -> Tensor:
    """Shrunk to a share of its sides, and enlarged again."""

    def change(picture: Image.Image) -> Image.Image:
        fewer = tuple(max(1, int(side * share)) for side in picture.size)
        return picture.resize(fewer, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)

    return _by_pillow(pictures, change)


def _shares(pictures: Tensor) -> Tensor:
    """fp64 in 0..1"""
    return pictures.double() / 255


def _bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def _by_pillow(pictures: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Colours together; of any other number of channels, each is a grey picture."""
    colour = pictures.shape[1] == 3
    arrays = (pictures.permute(0, 2, 3, 1) if colour else pictures.flatten(0, 1)).cpu().numpy()
    changed = torch.from_numpy(np.stack([np.asarray(change(Image.fromarray(array))) for array in arrays]))
    made = changed.permute(0, 3, 1, 2) if colour else changed.view(pictures.shape)
    return made.contiguous().to(pictures.device)


CORRUPTIONS: dict[str, tuple[tuple, tuple, Callable[[Tensor, float, Draw], Tensor]]] = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38), gaussian_noise),
    "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3), shot_noise),
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), gaussian_blur),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), brightness),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), contrast),
    "jpeg_compression": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7), jpeg_compression),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25), pixelate),
}
"""By name: the constants of the five severities for small pictures and for large ones, and what is done with one."""
