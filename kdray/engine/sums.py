"""Running sums of the loss terms, on the device: nothing waits for the device inside an epoch."""

from __future__ import annotations

import math

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
        self.finite = torch.zeros_like(self.values)  # how often each sum was finite after a step
        self.lost: dict[str, float] = {}

    def add(self, terms: dict[str, Tensor], rows: int) -> None:
        if not self.names:
            self.names = ["", *terms]  # "": the rows
            self.values = torch.zeros(len(self.names), dtype=torch.float64, device=self.context.device)
            self.finite = torch.zeros_like(self.values)
        self.values += (
            torch.stack([torch.ones((), device=self.context.device), *(t.detach() for t in terms.values())]).double()
            * rows
        )
        self.finite += self.values.isfinite()

    def shared(self) -> dict[str, float]:
        self.values, self.finite = self.context.sum(torch.stack([self.values, self.finite]))
        totals, finite = (dict(zip(self.names, x.tolist())) for x in (self.values, self.finite))
        self.lost = {name: finite[name] for name, total in totals.items() if not math.isfinite(total)}
        if not self.context.is_first:
            self.values, self.finite = torch.zeros_like(self.values), torch.zeros_like(self.finite)
        return totals

    def first_lost(self, terms: list[str]) -> list[str]:
        """Of these terms, those that `shared` found not to be finite, and that were so before the others."""
        lost = {name: steps for name, steps in self.lost.items() if name in terms}
        return [name for name, steps in lost.items() if steps == min(lost.values())]

    def means(self) -> dict[str, float]:
        totals = self.shared()
        rows = totals.pop("")
        return {name: total / rows for name, total in totals.items()}
