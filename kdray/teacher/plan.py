"""What a run will ask of a teacher, and how the work of answering is divided."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from ..config.schema import Config
from ..data.build import Data
from ..engine.phases import Phase
from .store import Store

MOST = 8192
"""Most answers of an item."""
ITEMS = 64
"""As many items as a plan has at least, so that workers share it evenly and a kill loses little."""
LEAST = 256
"""Fewest answers of an item, where there are so many."""


def views_met(config: Config, phases: list[Phase]) -> list[int]:
    """The views that the epochs of a run show."""
    epochs = max([config.schedule.epochs, *(phase.stage.epochs for phase in phases if phase.stage)])
    return sorted({epoch % config.views for epoch in range(epochs)})


def items(keys: np.ndarray) -> list[np.ndarray]:
    """The keys, sorted, in parts that depend on nothing but them: so whoever plans the same work plans the same
    shards."""
    size = min(MOST, max(LEAST, ceil(len(keys) / ITEMS)))
    return np.split(keys, range(size, len(keys), size)) if len(keys) else []


@dataclass
class Plan:
    """For one kind of pictures: the keys that are needed, in items, and of each item those that lack an answer."""

    store: Store
    items: list[np.ndarray]
    lacking: list[np.ndarray]

    @classmethod
    def make(cls, store: Store, data: Data, views: list[int], everything: bool = False) -> Plan:
        """everything: all pictures that there are, whatever the epochs show."""
        pictures = store.pictures
        parts = items(pictures.all(data.train.ids) if everything else pictures.met(data.train.ids, views))
        lacking = [store.cache.lacking(output, parts, store.samples) for output in store.outputs]
        return cls(store, parts, [_union(of_item) for of_item in zip(*lacking)])

    @property
    def needed(self) -> int:
        return sum(map(len, self.items))

    @property
    def missing(self) -> int:
        return sum(map(len, self.lacking))

    @property
    def bytes_a_picture(self) -> int:
        return sum(self.store.codec.bytes(output, width) + 4 for output, width in self.store.outputs.items())

    def pages_missing(self) -> list[int]:
        """Those that are not whole."""
        return sorted({int(page) for keys in self.lacking for page in np.unique(keys // self.store.samples)})


def _union(of_outputs: tuple[np.ndarray, ...]) -> np.ndarray:
    return of_outputs[0] if len(of_outputs) == 1 else np.unique(np.concatenate(of_outputs))


def is_there(store: Store, keys: np.ndarray) -> bool:
    """Whether somebody has answered an item meanwhile."""
    return all(not len(lacking) for o in store.outputs for lacking in store.cache.lacking(o, [keys], store.samples))
