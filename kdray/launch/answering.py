"""What a worker of `kdray precompute` does, in this process or as a Ray actor."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..config.schema import Config
from ..data.build import Data
from ..data.feed import Feed
from ..engine.allocator import keep_freed_memory
from ..engine.build import build
from ..engine.context import Context
from ..engine.evaluate import evaluate, together
from ..errors import ConfigError
from ..registry import Registry
from ..teacher.compute import answer, write
from ..teacher.plan import is_there
from ..teacher.setup import Place, identities, stores
from .code import Code


@dataclass(frozen=True)
class Errand:
    """What the driver sends to each worker. places: of the teachers to be asked."""

    config: Config
    data_root: Path
    checkpoints: dict[str, str]
    places: dict[str, Place] = field(default_factory=dict)
    code: Code = field(default_factory=Code)
    threads: int = 1


class Answerer:
    def __init__(self, errand: Errand, registry: Registry, device: torch.device, data: Data | None = None):
        config = self.config = errand.config
        if device.type == "cpu":
            keep_freed_memory()
        parts = self.parts = build(config, registry, errand.data_root, errand.checkpoints, device, data=data)
        self.teachers = {name: parts.teachers.by_name[name] for name in errand.places}
        self.stores = {}
        for name, place in errand.places.items():
            section, needs = config.all_teachers[name], parts.needs[name]
            wanted = identities(section, self.teachers[name], needs, parts.data, parts.views)
            self.stores[name] = stores(place, section, wanted, needs, parts.data, parts.views, parts.shapes[name])
        self.seen = set()

    def rate(self, name: str) -> float:
        """Pictures a second of a teacher's forward pass here."""
        data, device = self.parts.data, self.parts.device
        count = together(device)
        chosen = torch.arange(len(data.train))[torch.arange(count) % len(data.train)]
        pictures = next(Feed(data.train, data.augment, self.config.data.threads, device).batches([chosen], view=0))
        self.teachers[name](pictures[:32])
        began = time.monotonic()
        float(self.teachers[name](pictures).logits.sum())  # a device has done its work when it tells a number
        return count / (time.monotonic() - began)

    def accuracy(self, name: str) -> dict[str, float]:
        data, device = self.parts.data, self.parts.device
        feed = Feed(data.test, data.evaluate, self.config.data.threads, device)
        return evaluate(lambda x: self.teachers[name](x).logits, data.test, feed, Context(device=device))

    def compute(self, name: str, kind: str, keys: np.ndarray) -> bool:
        """Store the answers to `keys`; False where somebody has, meanwhile."""
        store = self.answer(name, kind, keys)
        if store:
            store()
        return store is not None

    def answer(self, name: str, kind: str, keys: np.ndarray) -> Callable[[], None] | None:
        """What stores the answers to `keys`, which are computed now; None where somebody has stored them meanwhile."""
        store = self.stores[name][kind]
        if (name, kind) not in self.seen:
            if store.cache.compare(store.identity) is None:
                raise ConfigError(
                    f"a worker on {socket.gethostname()} does not see the cache {store.cache.where}: put it "
                    "(teacher.cache.path, or [paths] cache in kdray.toml) on storage that every node shares"
                )
            self.seen.add((name, kind))
        if is_there(store, keys):
            return None
        return partial(write, keys, store, answer(keys, store, self.teachers[name], self.config.data.threads))
