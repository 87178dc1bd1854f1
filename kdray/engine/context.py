"""What the engine knows of other workers: its rank, and how to gather. torch.distributed carries it; who started the
workers does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """A worker among `world_size`. In a run of one worker nothing is communicated."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    alive: Callable[[], None] = lambda: None
    """Called as a sign of life, at every step and the like."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, x: Tensor, counts: list[int], differentiable: bool = False) -> Tensor:
        """Rows of all workers in the order of their ranks; `counts` are the rows of each. See `kdray.Step.gather`."""
        if self.world_size == 1:
            return x if differentiable else x.detach()
        if differentiable:
            return _Gather.apply(x, counts, self.rank)
        return _gather(x.detach(), counts)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(x)
        return x

    def max(self, x: Tensor) -> Tensor:
        """The largest over workers, number by number, in place."""
        if self.world_size > 1:
            dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """The first worker's values, in place."""
        if self.world_size > 1:
            dist.broadcast(x, 0)
        return x

    def tell(self, numbers: list[int]) -> list[int]:
        """The first worker's numbers, by way of the hosts: no device is waited for."""
        if self.world_size == 1:
            return numbers
        told = torch.tensor(numbers)
        dist.broadcast(told, 0, group=self._hosts)
        return told.tolist()

    @cached_property
    def _hosts(self):
        return dist.group.WORLD if self.device.type == "cpu" else dist.new_group(backend="gloo")

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def _gather(x: Tensor, counts: list[int]) -> Tensor:
    # all_gather wants equal shapes: shorter parts are padded and cut again.
    longest = max(counts)
    padded = x.contiguous() if len(x) == longest else torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums what every worker's loss says of my rows."""

    @staticmethod
    def forward(ctx, x, counts, rank):
        ctx.mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        return _gather(x, counts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may have given it to others too
        dist.all_reduce(gradient)
        return gradient[ctx.mine], None, None


def reseed(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from. torch.manual_seed would note a traceback for every device it has not started, a
    third of a millisecond at each step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
