"""From bytes to what a network is fed: (x / 255 - mean) / std."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from .source import Source, spread


class Normalize:
    """mean, std: a number a channel, of pictures scaled to 0..1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != len(std):
            raise ConfigError(f"normalize has {len(mean)} means and {len(std)} deviations: give one of each a channel")
        self.mean, self.std = tuple(mean), tuple(std)
        self._constants: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 (B, C, H, W) to `dtype`, in channels_last memory. Raises ConfigError when C is not what it is for."""
        if images.shape[1] != len(self.mean):
            raise ConfigError(
                f"normalize has {len(self.mean)} means, but the pictures have {images.shape[1]} channels: "
                "give as many numbers as there are channels"
            )
        scale, shift = self._on(images.device, dtype)
        x = torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
        return x.copy_(images).mul_(scale).add_(shift)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift (C, 1, 1), made once: a copy to the device at each step would make it wait."""
        if (device, dtype) not in self._constants:
            mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (self.mean, self.std))
            self._constants[device, dtype] = (1 / (255 * std)).to(device, dtype), (-mean / std).to(device, dtype)
        return self._constants[device, dtype]


def moments(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation a channel, scaled to 0..1, over the pixels of up to 4,096 pictures at equal distances.

    Sums are of integers, so the result is the same on every machine.
    """
    count, first, second = 0, 0, 0
    for position in spread(len(source), 4096):
        pixels = source.read(position).flatten(1).long()
        count, first, second = count + pixels.shape[1], first + pixels.sum(1), second + pixels.square().sum(1)
    mean = first.double() / count
    std = (second.double() / count - mean.square()).clamp(min=0).sqrt()
    if not std.all():
        raise ConfigError("a channel of the training pictures is the same everywhere: give data.normalize yourself")
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
