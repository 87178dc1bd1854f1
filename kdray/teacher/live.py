"""A teacher that looks at every batch itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.normalize import Normalize
from ..distiller import Outputs
from ..engine.precision import Precision, cast
from ..models.taps import Tapped

LEAST = 16
"""Pictures of a pass. CPU kernels for very few rows add up in another order, and a picture's answer would depend on how
many others it comes with; from 8 on it does not."""


class LiveTeacher(nn.Module):
    """Frozen, in evaluation mode, with its own normalisation and arithmetic: pictures uint8 (B, C, H, W) to `Outputs`
    in `dtype`, without a graph."""

    accuracy = None
    """Not known before it is measured."""

    def __init__(self, network: Tapped, normalize: Normalize, precision: Precision, dtype: torch.dtype):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.normalize, self.precision, self.dtype = normalize, precision, dtype
        self.count = sum(p.numel() for p in network.parameters())

    @property
    def head(self) -> tuple[Tensor, Tensor | None] | None:
        """Its classifier, where a loss reads it."""
        return cast(self.network.head, self.dtype)

    def train(self, mode: bool = True) -> LiveTeacher:
        return self  # a teacher's statistics and dropout never move

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Outputs:
        count = len(pictures)
        if count < LEAST:
            pictures = pictures[torch.arange(LEAST, device=pictures.device) % count]
        outputs = self.precision.run(self.network, self.normalize(pictures, self.precision.dtype))
        outputs = outputs.first(count) if count < LEAST else outputs
        return outputs if self.precision.dtype == self.dtype else cast(outputs, self.dtype)
