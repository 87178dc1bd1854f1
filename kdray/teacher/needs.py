"""What the losses of a run read of each teacher, and whether a cache can hold it."""

from __future__ import annotations

from dataclasses import dataclass

from ..distiller import Distiller
from .codec import OUTPUTS
from .teachers import AVERAGE

SERVED = {*OUTPUTS, "head"}
"""What a run without the teacher's forward pass has: stored answers, and the classifier from its weights."""


@dataclass(frozen=True)
class Needs:
    """Of one teacher."""

    outputs: dict[str, tuple[str, ...]]
    """By kind of pictures ("" those that the student sees, else a further view), the outputs to store."""
    beyond: dict[str, list[str]]
    """By loss, what it reads that no cache holds."""


def needs(teacher: str, of_loss: dict[str, str | None], classes: dict[str, type[Distiller]]) -> Needs:
    """of_loss: the teacher of each loss; classes: the distiller of each."""
    readers = {label: classes[label].requires for label, name in of_loss.items() if name in (teacher, AVERAGE)}
    kinds = {"": set()} | {view: set() for requires in readers.values() for view in requires.views}
    for requires in readers.values():
        for kind in ("", *requires.views):
            kinds[kind] |= requires.teacher
    beyond = {label: sorted(requires.teacher - SERVED) for label, requires in readers.items()}
    return Needs(
        {kind: tuple(o for o in OUTPUTS if o in outputs) for kind, outputs in kinds.items()},
        {label: outputs for label, outputs in beyond.items() if outputs},
    )
