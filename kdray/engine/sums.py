"""Running sums of the loss terms, on the device: nothing waits for the device inside an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import Context

ROWS = ""
"""The number of rows, among the sums by name."""


class Sums:
    """Each term times its rows, and the rows. start: by name, what each worker had summed up at a checkpoint; other
    workers than then go on from the sum of all."""

    def __init__(self, context: Context, start: dict[str, list[float]]):
        self.context = context
        if all(len(values) == context.world_size for values in start.values()):
            mine = {name: values[context.rank] for name, values in start.items()}
        else:
            mine = {name: sum(values) if context.is_first else 0.0 for name, values in start.items()}
        self.rows = mine.pop(ROWS, 0.0)
        self.names = list(mine)
        self.values = torch.tensor(list(mine.values()), dtype=torch.float64, device=context.device)
        self.unseen: list[Tensor] = []  # the terms of each step since `first_lost` was last asked

    def add(self, terms: dict[str, Tensor], rows: int) -> None:
        if not self.names:
            self.names = list(terms)
            self.values = torch.zeros(len(self.names), dtype=torch.float64, device=self.context.device)
        now = torch.stack([term.detach() for term in terms.values()]).double()
        self.values.add_(now, alpha=rows)
        self.rows += rows
        self.unseen.append(now)

    def by_worker(self) -> dict[str, list[float]]:
        """What `start` is to be."""
        parts = self.context.gather(self._with_rows()[None], [1] * self.context.world_size)
        return dict(zip([ROWS, *self.names], parts.T.tolist()))

    def _with_rows(self) -> Tensor:
        return torch.cat([self.values.new_full((1,), self.rows), self.values])

    def first_lost(self) -> tuple[int, list[str]] | None:
        """The first step since this was last asked where a term was not finite, for whichever worker: how many steps
        ago, 0 for the last one, and the terms. The device is waited for."""
        if not self.unseen:
            return None
        lost = self.context.sum((~torch.stack(self.unseen).isfinite()).int()).tolist()
        self.unseen = []
        for number, flags in enumerate(lost):
            if any(flags):
                return len(lost) - 1 - number, [name for name, flag in zip(self.names, flags) if flag]
        return None

    def means(self) -> dict[str, float]:
        rows, *totals = self.context.sum(self._with_rows()).tolist()
        return {name: total / rows for name, total in zip(self.names, totals)}
