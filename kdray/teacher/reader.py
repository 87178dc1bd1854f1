"""The rows of one output of a cache, by key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from ..errors import MismatchError
from .cache import THREADS, Cache
from .shard import Opened, Shard

Form = dict[str, tuple[torch.dtype, torch.Size]]
"""By the name of a stored tensor, its type and the shape of a row."""


def form_of(parts: dict[str, Tensor]) -> Form:
    return {name: (x.dtype, x.shape[1:]) for name, x in parts.items()}


class Reader:
    """Opens the shards that are asked for, and keeps them open as long as they are."""

    def __init__(self, cache: Cache, output: str, samples: int, form: Form):
        self.cache, self.output, self.samples, self.form = cache, output, samples, form
        self.opened: dict[str, Opened] = {}
        self.rows = Rows([])

    def load(self, keys: np.ndarray) -> Rows:
        """What there is on the pages of `keys`. Shards of other pages are let go."""
        wanted = self._shards(keys)
        names = [shard.name for shard in wanted]
        if names == list(self.opened):
            return self.rows
        new = [shard for shard in wanted if shard.name not in self.opened]
        with ThreadPoolExecutor(THREADS) as pool:
            opened = dict(zip((s.name for s in new), pool.map(self._open, new)))
        self.opened = {name: opened.get(name) or self.opened[name] for name in names}
        self.rows = Rows(list(self.opened.values()))
        return self.rows

    def fetch(self, keys: np.ndarray) -> None:
        """Have the shards with these keys on this machine."""
        with suppress(Exception):  # of a thread that nobody listens to
            for shard in self._shards(keys):
                self.cache.fetch(self.output, shard)

    def _shards(self, keys: np.ndarray) -> list[Shard]:
        pages = np.unique(keys // self.samples)
        return [shard for shard in self.cache.shards(self.output) if _touches(shard, pages)]

    def _open(self, shard: Shard) -> Opened:
        """Raises MismatchError for a damaged one, and for one of another form."""
        opened = self.cache.open(self.output, shard, self.samples)
        if form_of(opened.parts) != self.form:
            raise MismatchError(
                f"{self.cache.where}/{self.output}/{shard.name} holds {form_of(opened.parts)}, and what is stored here "
                f"is {self.form}. Remove the file, and `kdray precompute` computes it again."
            )
        return opened


def _touches(shard: Shard, pages: np.ndarray) -> bool:
    place = np.searchsorted(pages, shard.first)
    return place < len(pages) and pages[place] <= shard.last


class Rows:
    """The rows of some shards, as if they were one."""

    def __init__(self, shards: list[Opened]):
        self.shards = shards
        self.starts = np.cumsum([0, *(len(shard.keys) for shard in shards)])
        keys = np.concatenate([shard.keys for shard in shards]) if shards else np.empty(0, np.int64)
        self.order = keys.argsort(kind="stable")
        self.keys = keys[self.order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key, −1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        place = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.order[place], -1)

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The stored tensors of `rows` (n,), none of them −1."""
        order = rows.argsort(kind="stable")
        which = np.searchsorted(self.starts, rows[order], side="right") - 1
        bounds = np.flatnonzero(np.diff(which, prepend=-1))
        found: dict[str, Tensor] = {}
        for begin, end in zip(bounds, [*bounds[1:], len(rows)]):
            shard = self.shards[which[begin]]
            local = torch.from_numpy(rows[order[begin:end]] - self.starts[which[begin]])
            place = torch.from_numpy(order[begin:end])
            for name, part in shard.parts.items():
                if name not in found:
                    found[name] = part.new_empty(len(rows), *part.shape[1:])
                found[name][place] = part.index_select(0, local)
        return found
