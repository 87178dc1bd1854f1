"""Pictures for the engine: batches in the asked order, augmented, on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError
from .augment import Pipeline
from .source import size_of

if TYPE_CHECKING:
    from .build import Split

TOGETHER_ON_GPU = 64 << 20  # bytes of pictures that are augmented at a time there; a batch would be over too soon
AHEAD = 4  # batches that are decoded before they are asked for
TOGETHER = 8  # pictures that a thread takes at a time


class Feed:
    """In memory: indexed and augmented as one batch, on the device. Streamed: decoded and augmented by threads."""

    def __init__(self, split: Split, pipeline: Pipeline, threads: int, device: torch.device):
        self.split, self.pipeline, self.threads, self.device = split, pipeline, threads, device
        self.images = split.source.images_on(device)

    def batches(self, positions: Iterable[Tensor], view: int) -> Iterator[Tensor]:
        """positions: of the split, a tensor (B,) a batch, none of them empty. Yields uint8 (B, C, H, W)."""
        if self.images is None:
            yield from self._streamed(positions, view)
            return
        for some in self._pieces(positions):
            ids = self.split.ids[torch.cat(some)]
            made = self.pipeline(self.images.index_select(0, ids.to(self.device, non_blocking=True)), ids, view)
            yield from made.split([len(chosen) for chosen in some])

    def _pieces(self, positions: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Batches that are augmented together. On a CPU one alone: it stays in the cache."""
        positions, size = iter(positions), 1
        for first in positions:
            if self.device.type == "cuda":
                size = max(1, TOGETHER_ON_GPU // (len(first) * self.images[0].nbytes))
            yield first, *islice(positions, size - 1)

    def _streamed(self, positions: Iterable[Tensor], view: int) -> Iterator[Tensor]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="kdray-decode")
        waiting: deque[tuple[Tensor, list[Future]]] = deque()
        try:
            for chosen in positions:
                ids = self.split.ids[chosen]
                waiting.append((ids, [pool.submit(self._pictures, part, view) for part in ids.split(TOGETHER)]))
                if len(waiting) > AHEAD:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())
        finally:  # also when nobody asks for the rest
            pool.shutdown(wait=False, cancel_futures=True)

    def _pictures(self, ids: Tensor, view: int) -> list[Tensor]:
        return self.pipeline.read(self.split.source, ids, view)

    def _batch(self, ids: Tensor, parts: list[Future]) -> Tensor:
        pictures = [picture for part in parts for picture in part.result()]
        other = next((i for i, picture in enumerate(pictures) if picture.shape != pictures[0].shape), None)
        if other is not None:
            raise ConfigError(
                f"pictures {ids[0]} and {ids[other]} are {size_of(pictures[0])} and {size_of(pictures[other])}, and a "
                "batch needs one size: use random_resized_crop in data.augment, resize and center_crop in data.evaluate"
            )
        batch = torch.stack(pictures)
        return batch.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else batch
