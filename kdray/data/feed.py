"""Pictures of a split in batches, augmented: from memory in one go, or decoded by threads a few batches ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ..errors import ConfigError
from .augment import Pipeline
from .split import Split

AHEAD = 4
"""Batches that are decoded before they are asked for."""
TOGETHER = 8
"""Pictures that a thread takes at a time."""


class Feed:
    """threads: how many decode, where the split is streamed; device: where the pictures are wanted."""

    def __init__(self, split: Split, pipeline: Pipeline, threads: int, device: torch.device):
        self.split, self.pipeline, self.threads, self.device = split, pipeline, threads, torch.device(device)

    def batches(self, index_batches: Iterable[Tensor], view: int) -> Iterator[Tensor]:
        """uint8 (B, C, H, W) for each int64 (B,) of positions in the split, in order.

        Closing the iterator ends its threads. Raises ConfigError for a picture that cannot be read, and for pictures
        that come out of the augmentations in several sizes.
        """
        if self.split.images is None:
            return self._streamed(index_batches, view)
        return self._from_memory(index_batches, view)

    def _from_memory(self, index_batches: Iterable[Tensor], view: int) -> Iterator[Tensor]:
        images, ids = self.split.images_on(self.device), self.split.ids.to(self.device)
        for rows in index_batches:
            rows = rows.to(self.device, non_blocking=True)
            yield self.pipeline(images.index_select(0, rows), ids.index_select(0, rows), view)

    def _streamed(self, index_batches: Iterable[Tensor], view: int) -> Iterator[Tensor]:
        waiting: deque[list[Future]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="kdray-feed")
        try:
            for rows in index_batches:
                waiting.append([pool.submit(self._read, part, view) for part in rows.split(TOGETHER)])
                if len(waiting) > AHEAD:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, rows: Tensor, view: int) -> list[tuple[int, Tensor]]:
        """(original index, augmented picture) of each position: one by one, for their sizes may differ."""
        ids = self.split.ids[rows]
        return [(i, self.pipeline(self.split.source.read(i)[None], ids[n : n + 1], view)) for n, i in enumerate(ids.tolist())]

    def _collect(self, parts: list[Future]) -> Tensor:
        pictures = [pair for part in parts for pair in part.result()]
        (first, like), *others = pictures
        for index, picture in others:
            if picture.shape != like.shape:
                sizes = ["×".join(map(str, p.shape[2:])) for p in (like, picture)]
                raise ConfigError(
                    f"pictures {first} and {index} of the data set come out as {sizes[0]} and {sizes[1]}, and a batch needs one size: "
                    "add random_resized_crop or resize to data.augment, and resize and center_crop to data.evaluate"
                )
        batch = torch.cat([picture for _, picture in pictures])
        return batch.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else batch
