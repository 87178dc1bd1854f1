"""Exponential moving average of the student's weights and statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """`state` has the names of the network's state dict. Evaluate it with `torch.func.functional_call(network,
    ema.state, x)`."""

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay = network, decay
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        now = self.network.state_dict()
        moving = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in moving], [now[n] for n in moving], 1 - self.decay)
        for name in now.keys() - set(moving):  # counters
            self.state[name].copy_(now[name])

    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.state[name].copy_(value)
