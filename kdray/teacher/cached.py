"""A teacher whose answers are stored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..distiller import Outputs
from ..errors import MismatchError
from .live import LiveTeacher
from .store import Found, Store


class CachedTeacher:
    """Answers from its stores, by kind of pictures ("" those that the student sees, else a further view).

    keep: the live teacher is asked for what is not stored yet; its answers are stored, and heard in their stored form:
    a run that fills a cache, one that reads it and one that was interrupted in between see the same numbers.
    """

    def __init__(self, stores: dict[str, Store], accuracy: dict | None, teacher: LiveTeacher, keep: bool):
        self.stores, self.accuracy = stores, accuracy
        """accuracy: of the teacher on the test set, where it was measured."""
        self.live, self.count, self.dtype = teacher if keep else None, teacher.count, teacher.dtype
        self.head = teacher.head
        self.device = next(teacher.parameters()).device

    @property
    def where(self) -> str:
        return self.stores[""].cache.where

    def begin(self, accuracy: dict) -> None:
        """Make the caches that it fills, where they are not there."""
        self.accuracy = accuracy
        for store in self.stores.values():
            store.cache.create(store.identity, accuracy)

    def batches(self, ids: list[Tensor], view: int, following: int | None) -> Iterator[dict[str, Found]]:
        """What is stored for samples `ids` (b,) a batch, as they look in `view`, by kind of pictures. following: the
        view of the next epoch."""
        every = {kind: store.batches(ids, view, following, self.device) for kind, store in self.stores.items()}
        for _ in ids:
            yield {kind: next(found) for kind, found in every.items()}

    def answer(self, found: dict[str, Found], pictures: Tensor, views: dict[str, Tensor]) -> Outputs:
        """pictures, views: uint8 (b, C, H, W), looked at only where something is not stored."""
        outputs = self._answer("", found[""], pictures)
        outputs.views = {kind: self._answer(kind, found[kind], views[kind]) for kind in self.stores if kind}
        return outputs

    def _answer(self, kind: str, found: Found, pictures: Tensor) -> Outputs:
        store = self.stores[kind]
        if found.complete:
            return Outputs(head=self.head, **{o: self._decode(store, o, parts) for o, parts in found.parts.items()})
        lacking = ~found.there
        if self.live is None:
            raise MismatchError(
                f"{store.cache.where} has no answer to {int(lacking.sum())} of the pictures of this batch: a shard was "
                "removed while the run went on. `kdray precompute` adds what is missing, `kdray resume` goes on."
            )
        heard = self.live(pictures[lacking.to(pictures.device)])
        new = store.add(found.keys[lacking.numpy()], {o: getattr(heard, o) for o in store.outputs})
        outputs = Outputs(head=self.head)
        for output, width in store.outputs.items():
            answers = torch.empty(len(lacking), width, dtype=self.dtype, device=self.device)
            if len(lacking) > int(lacking.sum()):
                answers[found.there.to(self.device)] = self._decode(store, output, found.parts[output])
            answers[lacking.to(self.device)] = self._decode(store, output, new[output])
            setattr(outputs, output, answers)
        return outputs

    def _decode(self, store: Store, output: str, parts: dict[str, Tensor]) -> Tensor:
        return store.decode(output, parts, self.device, self.dtype)

    def flush(self) -> None:
        """Write what the live teacher has added."""
        for store in self.stores.values():
            store.flush()
