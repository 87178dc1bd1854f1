"""A student as others run it: pictures go in as they are read, logits come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.normalize import Normalize


class Deployable(nn.Module):
    """The network with its normalisation inside, in fp32 on the CPU."""

    def __init__(self, network: nn.Module, normalize: Normalize):
        super().__init__()
        self.network = network.cpu().float()
        mean, std = (torch.tensor(x, dtype=torch.float64).view(1, -1, 1, 1) for x in (normalize.mean, normalize.std))
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures: uint8 (B, C, H, W), of the size the network was trained on. Returns logits (B, classes), fp32."""
        return self.network(pictures.to(torch.float32) * self.scale + self.shift)
