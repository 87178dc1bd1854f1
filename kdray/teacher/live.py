"""A teacher that looks at every batch itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.normalize import Normalize
from ..distiller import Outputs
from ..engine.precision import Precision
from ..models.taps import Tapped


class LiveTeacher(nn.Module):
    """Frozen, in evaluation mode, with its own normalisation: pictures uint8 (B, C, H, W) to `Outputs` without a
    graph."""

    def __init__(self, network: Tapped, normalize: Normalize, precision: Precision):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.normalize, self.precision = normalize, precision

    def train(self, mode: bool = True) -> LiveTeacher:
        return self  # a teacher's statistics and dropout never move

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Outputs:
        return self.precision.run(self.network, self.normalize(pictures, self.precision.dtype))
