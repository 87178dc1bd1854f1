"""Accuracy over a split: every sample counted once, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.build import Split
from ..data.feed import Feed
from ..data.views import share
from .context import Context

BATCH = 256


def together(device: torch.device) -> int:
    """Pictures of a pass that learns nothing. For fewer a GPU takes as long: its kernels have to be launched."""
    return 2048 if device.type == "cuda" else BATCH


@torch.no_grad()
def evaluate(network: Callable[[Tensor], Tensor], split: Split, feed: Feed, context: Context) -> dict[str, float]:
    """`network` maps uint8 pictures (B, C, H, W) to logits (B, classes). Returns top1 and top5 (shares), loss (mean
    cross-entropy) and samples."""
    size = together(context.device)
    part = share(len(split), context.rank, context.world_size)
    positions = [chosen for chosen in torch.arange(part.start, part.stop).split(size) if len(chosen)]
    totals = torch.zeros(4, dtype=torch.float64, device=context.device)  # top-1 hits, top-5 hits, summed loss, samples
    labels = split.labels.to(context.device)
    for chosen, pictures in zip(positions, feed.batches(positions, view=0)):
        logits = network(pictures).double()
        target = labels[chosen.to(context.device)]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == target[:, None]
        loss = F.cross_entropy(logits, target, reduction="sum")
        totals[:3] += torch.stack([hits[:, 0].sum(), hits.sum(), loss])
        totals[3] += len(chosen)
        context.alive()
    # A network in shares is computed by all workers together: each calls it as often as the one with most pictures.
    longest = -(-len(split) // context.world_size)
    for pictures in feed.batches([torch.tensor([0])] * (-(-longest // size) - len(positions)), view=0):
        network(pictures)
    top1, top5, loss, samples = context.sum(totals).tolist()
    return {"top1": top1 / samples, "top5": top5 / samples, "loss": loss / samples, "samples": int(samples)}
