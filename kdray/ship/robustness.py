"""How well a network does on pictures that are made worse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..data.build import Split
from ..data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ..data.feed import Feed
from ..engine.evaluate import together
from ..launch.measure import Rebuilt

EACH = len(CORRUPTIONS) * len(SEVERITIES)
"""Pictures that are made of one."""


@torch.no_grad()
def corrupted(found: Rebuilt, split: Split, seed: int, done: Callable[[int], None]) -> dict:
    """top1: the mean over all corruptions and severities; by_corruption: by name top1 and loss at each severity, and
    mean, that of top1. `done` hears how many pictures more have been seen."""
    device = found.parts.device
    feed = Feed(split, found.parts.data.evaluate, found.threads, device)
    positions = torch.arange(len(split)).split(together(device))
    totals = torch.zeros(len(CORRUPTIONS), len(SEVERITIES), 2, dtype=torch.float64, device=device)  # hits, summed loss
    labels = split.labels.to(device)
    for chosen, pictures in zip(positions, feed.batches(positions, view=0)):
        target, ids = labels[chosen.to(device)], split.ids[chosen]
        for of_corruption, name in zip(totals, CORRUPTIONS):
            for of_severity, severity in zip(of_corruption, SEVERITIES):
                logits = found.logits(corrupt(pictures, ids, name, severity, seed)).double()
                hits = (logits.argmax(1) == target).sum()
                of_severity += torch.stack([hits, F.cross_entropy(logits, target, reduction="sum")])
                done(len(chosen))
    top1, loss = (totals / len(split)).unbind(2)
    return {
        "top1": float(top1.mean()),
        "by_corruption": {
            name: {"top1": top1[i].tolist(), "loss": loss[i].tolist(), "mean": float(top1[i].mean())}
            for i, name in enumerate(CORRUPTIONS)
        },
    }
