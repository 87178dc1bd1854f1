"""A head that follows another one slowly."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class Slow(nn.Module):
    """A copy of `head` whose weights move to m · old + (1 − m) · head's at every call; nothing trains it."""

    def __init__(self, head: nn.Module, momentum: float):
        super().__init__()
        self.copy, self.momentum = deepcopy(head).requires_grad_(False), momentum

    @torch.no_grad()
    def forward(self, head: nn.Module, x: Tensor) -> Tensor:
        """What the copy says of x, after it has moved towards `head`."""
        for old, new in zip(self.copy.parameters(), head.parameters()):
            old.lerp_(new, 1 - self.momentum)
        return self.copy(x)
