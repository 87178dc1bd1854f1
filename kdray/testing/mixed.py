"""Made-up batches of mixed pictures, and whether a loss goes with them."""

from __future__ import annotations

from dataclasses import replace

from ..distiller import Batch, Distiller
from .rehearsal import Rehearsal
from .scenes import PAIRS, scene


def two_classes(batch: Batch) -> Batch:
    """Each row with another class for its partner's, and a share that follows from the sample."""
    return replace(batch, partner=1 - batch.target.clamp(max=1), share=(1 + batch.index % 4).double() / 5)


def swapped(batch: Batch) -> Batch:
    """The pictures of `two_classes`, named by their other sample."""
    batch = two_classes(batch)
    return replace(batch, target=batch.partner, partner=batch.target, share=1 - batch.share)


def check_mixed(label: str, cls: type[Distiller], options: dict) -> None:
    """Raises ConfigError where the loss `label` takes a mixed picture for one of a single class.

    It plays its part in a rehearsal; where it fits none, the first step of the run will tell.
    """
    for pair in PAIRS:
        try:
            Rehearsal(cls, options, scene(pair)).run()
        except Exception:
            continue
        Rehearsal(cls, options, scene(pair), mixed=two_classes, label=label).run()
        return
