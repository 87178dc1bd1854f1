"""A first-in-first-out memory of embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distiller import Step

AT_ONCE = 1 << 16
"""Rows that are drawn at a time: a memory may be so large that there is no room for it twice."""


def random_rows(rows: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform in ±1/√(dim/3), as the published banks begin: vectors of length about 1."""
    found, bound = torch.empty(rows, dim, dtype=dtype), (dim / 3) ** -0.5
    for part in found.split(AT_ONCE):
        part.copy_(torch.rand(part.shape, generator=generator) * 2 * bound - bound)
    return found


class Ring(nn.Module):
    """The last `count` rows of the training, one buffer of that length for each of `widths`; a sample has the same
    place in all of them. They begin as random unit vectors."""

    def __init__(self, count: int, generator: torch.Generator, **widths: int):
        super().__init__()
        for name, width in widths.items():
            self.register_buffer(name, F.normalize(random_rows(count, width, generator), dim=1))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))
        self.count = count

    @torch.no_grad()
    def push(self, step: Step, **rows: Tensor) -> None:
        """Write this worker's `rows`, by the name of their buffer, after those of all workers before it."""
        for name, mine in rows.items():
            new = step.gather(mine.detach())[-self.count :]  # of a batch longer than the memory, the last rows stay
            buffer = getattr(self, name)
            places = (self.head + torch.arange(len(new), device=new.device)) % self.count
            buffer[places] = new.to(buffer.dtype)
        self.head.copy_((self.head + len(new)) % self.count)
