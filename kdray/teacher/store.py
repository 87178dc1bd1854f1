"""A cache at work: what a run reads from it and adds to it, for one kind of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from .cache import Cache
from .codec import Codec
from .pictures import Pictures, unique
from .reader import Reader, form_of

AHEAD = 4096
"""Rows that are gathered at a time, while the rows before them are used."""
TOGETHER = 1 << 16
"""Most rows of a shard that a run adds."""


Parts = dict[str, dict[str, Tensor]]
"""By output, the tensors in which it is stored."""


@dataclass
class Found:
    """What there is about the b pictures of a batch."""

    keys: np.ndarray
    there: Tensor
    """(b,) bool, on the CPU: which have an answer."""
    parts: Parts
    """Of those that do."""

    @property
    def complete(self) -> bool:
        return bool(self.there.all())


def _by_batch(block: list[np.ndarray], there: np.ndarray, parts: Parts) -> Iterator[Found]:
    begin = taken = 0
    for keys in block:
        has = there[begin : begin + len(keys)]
        chosen = slice(taken, taken + int(has.sum()))
        yield Found(keys, torch.from_numpy(has), _each(parts, itemgetter(chosen)))
        begin, taken = begin + len(keys), chosen.stop


def _each(parts: Parts, change: Callable[[Tensor], Tensor]) -> Parts:
    return {output: {name: change(x) for name, x in tensors.items()} for output, tensors in parts.items()}


@dataclass
class Store:
    """outputs: width of each stored output. identity: that its cache must have."""

    cache: Cache
    pictures: Pictures
    outputs: dict[str, int]
    codec: Codec
    identity: dict
    added: list[tuple[np.ndarray, dict[str, dict[str, Tensor]]]] = field(default_factory=list)

    def __post_init__(self):
        self.samples = len(self.pictures.source)
        self.readers = {
            output: Reader(self.cache, output, self.samples, form_of(self.codec.encode(output, torch.zeros(1, width))))
            for output, width in self.outputs.items()
        }

    def batches(self, ids: list[Tensor], view: int, following: int | None, device: torch.device) -> Iterator[Found]:
        """For samples `ids` (b,) a batch, as they look in `view`, with what is stored on `device`. A thread gathers
        some batches ahead, another one fetches what the view of the `following` epoch needs, where the cache is
        elsewhere."""
        if not ids:
            return
        every = self.pictures.keys(torch.cat(ids), view).numpy()
        keys = np.split(every, np.cumsum([len(chosen) for chosen in ids[:-1]]))
        size = max(1, AHEAD // max(1, len(keys[0])))
        blocks = [keys[i : i + size] for i in range(0, len(keys), size)]
        with ThreadPoolExecutor(1, thread_name_prefix="kdray-cache") as pool:
            rows = {output: reader.load(every) for output, reader in self.readers.items()}
            coming = pool.submit(self._gather, blocks[0], rows, device)
            if following is not None:
                self._fetch(self.pictures.keys(torch.cat(ids), following).numpy())
            for block, next_block in zip(blocks, [*blocks[1:], None]):
                there, parts = coming.result()
                if next_block is not None:
                    coming = pool.submit(self._gather, next_block, rows, device)
                yield from _by_batch(block, there, _each(parts, lambda x: x.to(device, non_blocking=True)))

    def _fetch(self, keys: np.ndarray) -> None:
        """Begin to bring the shards with these keys to this machine. What fails is told when they are read."""
        if not self.cache.storage.is_local:
            for reader in self.readers.values():
                Thread(target=reader.fetch, args=(keys,), name="kdray-fetch", daemon=True).start()

    def _gather(self, block: list[np.ndarray], rows: dict, device: torch.device) -> tuple[np.ndarray, Parts]:
        """Which of the keys of a block are stored, and what, by output; pinned on its way to a GPU."""
        keys = np.concatenate(block)
        places = {output: of_output.find(keys) for output, of_output in rows.items()}
        there = np.logical_and.reduce([place >= 0 for place in places.values()])
        parts = {output: rows[output].take(place[there]) for output, place in places.items()}
        return there, _each(parts, Tensor.pin_memory) if device.type == "cuda" else parts

    def decode(self, output: str, parts: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
        moved = {name: x.to(device, non_blocking=True) for name, x in parts.items()}
        return self.codec.decode(output, moved, self.outputs[output], dtype)

    def add(self, keys: np.ndarray, answers: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Remember the answers (n, D) to `keys` until the next `flush`. Returns them as they will be read."""
        parts = {output: self.codec.encode(output, answers[output]) for output in self.outputs}
        on_cpu = {output: {name: x.cpu() for name, x in tensors.items()} for output, tensors in parts.items()}
        self.added.append((keys, on_cpu))
        return parts

    def flush(self) -> None:
        """Write what was added."""
        if not self.added:
            return
        keys = np.concatenate([keys for keys, _ in self.added])
        order = np.searchsorted(np.sort(keys), unique(keys))  # a key that was answered twice is written once
        order = keys.argsort(kind="stable")[order]
        for output in self.outputs:
            first = self.added[0][1][output]
            parts = {name: torch.cat([parts[output][name] for _, parts in self.added]) for name in first}
            for rows in np.split(order, range(TOGETHER, len(order), TOGETHER)):
                chosen = {name: x[torch.from_numpy(rows)] for name, x in parts.items()}
                self.cache.write(output, keys[rows], chosen, self.samples)
        self.added.clear()
