"""Running sums of the loss terms, on the device: nothing waits for the device inside an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import Context


class Sums:
    """Each term times its rows, and the rows. After `shared`, the first worker holds the sums of all, the others
    zeros."""

    def __init__(self, context: Context, start: dict[str, float]):
        self.context = context
        self.names = list(start)
        mine = list(start.values()) if context.is_first else [0.0] * len(start)
        self.values = torch.tensor(mine, dtype=torch.float64, device=context.device)

    def add(self, terms: dict[str, Tensor], rows: int) -> None:
        if not self.names:
            self.names = ["", *terms]  # "": the rows
            self.values = torch.zeros(len(self.names), dtype=torch.float64, device=self.context.device)
        self.values += (
            torch.stack([torch.ones((), device=self.context.device), *(t.detach() for t in terms.values())]).double()
            * rows
        )

    def shared(self) -> dict[str, float]:
        self.context.sum(self.values)
        totals = dict(zip(self.names, self.values.tolist()))
        if not self.context.is_first:
            self.values.zero_()
        return totals

    def means(self) -> dict[str, float]:
        totals = self.shared()
        rows = totals.pop("")
        return {name: total / rows for name, total in totals.items()}
