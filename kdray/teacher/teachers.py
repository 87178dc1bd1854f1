"""All teachers of a run, and what each loss sees of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from ..distiller import Outputs
from ..models.taps import Tapped
from .cached import CachedTeacher
from .live import LiveTeacher
from .placed import PlacedTeacher
from .store import Found

AVERAGE = "average"

Teacher = LiveTeacher | CachedTeacher | PlacedTeacher
Stored = dict[str, dict[str, Found] | Outputs]
"""What is known about the pictures of a batch before it is shown: by teacher, what is stored, by kind of pictures; or
what one that is placed elsewhere says."""


class Teachers:
    """`of_loss` maps the label of every loss to the name of its teacher, `average`, or None."""

    def __init__(self, by_name: dict[str, Teacher], of_loss: dict[str, str | None]):
        self.by_name, self.of_loss = by_name, of_loss

    def heard(self, labels: Collection[str]) -> set[str]:
        """The teachers that these losses listen to."""
        names = {self.of_loss[label] for label in labels} - {None}
        return set(self.by_name) if AVERAGE in names else names

    def stored(
        self, ids: list[Tensor], view: int, labels: Collection[str], following: int | None = None
    ) -> Iterator[Stored]:
        """What caches hold and placed teachers say for the losses `labels`, of the samples `ids` (b,) a batch, as they
        look in `view`. following: the view of the next epoch, where there is one."""
        known = {}
        for name in self.heard(labels):
            match self.by_name[name]:
                case CachedTeacher() as teacher:
                    known[name] = teacher.batches(ids, view, following)
                case PlacedTeacher() as teacher:
                    known[name] = teacher.batches(ids, view)
        for _ in ids:
            yield {name: next(batches) for name, batches in known.items()}

    def known(
        self, pictures: Tensor, views: dict[str, Tensor], labels: Collection[str], stored: Stored
    ) -> dict[str, Outputs]:
        """By name, what those teachers say that the losses `labels` listen to and that need not look at the batch, or
        at parts of it only."""
        found = {}
        for name in sorted(self.heard(labels)):
            match self.by_name[name]:
                case CachedTeacher() as teacher:
                    found[name] = teacher.answer(stored[name], pictures, views)
                case PlacedTeacher():
                    found[name] = stored[name]
        return found

    def __call__(
        self, pictures: Tensor, views: dict[str, Tensor], labels: Collection[str], known: dict[str, Outputs]
    ) -> dict[str, Outputs]:
        """Outputs by label for the losses `labels`, each teacher asked once that is not among the `known`. views:
        further pictures."""
        asked = {label: self.of_loss[label] for label in labels}
        heard = self.heard(labels)
        seen = {
            name: known[name] if name in known else _look(teacher, pictures, views)
            for name, teacher in self.by_name.items()
            if name in heard
        }
        if AVERAGE in asked.values():
            seen[AVERAGE] = average(list(seen.values()))
        return {label: seen[name] if name else Outputs() for label, name in asked.items()}

    def networks(self) -> list[Tapped]:
        """Those that look at the batches here."""
        return [teacher.network for teacher in self.by_name.values() if isinstance(teacher, LiveTeacher)]

    def flush(self) -> None:
        """Write what teachers that fill a cache have added."""
        for teacher in self.by_name.values():
            if isinstance(teacher, CachedTeacher):
                teacher.flush()

    def logits(self, name: str, pictures: Tensor) -> Tensor:
        """What a live teacher, or the average of all, answers."""
        if name != AVERAGE:
            return self.by_name[name](pictures).logits
        return average([teacher(pictures) for teacher in self.by_name.values()]).logits


def _look(teacher: LiveTeacher, pictures: Tensor, views: dict[str, Tensor]) -> Outputs:
    outputs = teacher(pictures)
    outputs.views = {view: teacher(x) for view, x in views.items()}
    return outputs


def average(outputs: list[Outputs]) -> Outputs:
    """The mean of the logits: the normalised geometric mean of the predictions, at every temperature.

    Of the views that all of them have: a cache holds those alone that a loss reads of its teacher.
    """
    views = [name for name in outputs[0].views if all(name in o.views for o in outputs)]
    return Outputs(
        logits=torch.stack([o.logits for o in outputs]).mean(dim=0),
        views={name: average([o.views[name] for o in outputs]) for name in views},
    )
