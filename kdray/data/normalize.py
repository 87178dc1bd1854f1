"""From bytes to what a network reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError


class Normalize:
    """uint8 (B, C, H, W) to (x / 255 − mean) / std, channels_last."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != len(std):
            raise ConfigError(f"normalize has {len(mean)} means and {len(std)} deviations: one of each a channel")
        self.mean, self.std = tuple(mean), tuple(std)
        self._at: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        scale, shift = self._constants(images, dtype)
        return torch.addcmul(shift, images.to(dtype, memory_format=torch.channels_last), scale)

    def _constants(self, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        key = (images.device, dtype)
        if key not in self._at:
            if images.shape[1] != len(self.mean):
                raise ConfigError(f"normalize has {len(self.mean)} channels, the pictures have {images.shape[1]}")
            mean, std = (torch.tensor(x, dtype=torch.float64).view(1, -1, 1, 1) for x in (self.mean, self.std))
            self._at[key] = (1 / (255 * std)).to(*key), (-mean / std).to(*key)
        return self._at[key]
