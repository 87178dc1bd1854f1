"""Pictures for the engine: batches in the asked order, augmented, on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError
from .augment import Pipeline

if TYPE_CHECKING:
    from .build import Split

AHEAD = 4  # batches that are decoded before they are asked for


class Feed:
    """In memory: indexed and augmented as one batch, on the device. Streamed: decoded and augmented picture by picture in threads, ahead of time."""

    def __init__(self, split: Split, pipeline: Pipeline, threads: int, device: torch.device):
        self.split, self.pipeline, self.threads, self.device = split, pipeline, threads, device
        self.ids = split.ids.to(device)
        self.images = None if split.source.images is None else split.source.images.to(device)

    def batches(self, positions: Iterable[Tensor], view: int) -> Iterator[Tensor]:
        """positions: of the split, a tensor (B,) a batch. Yields uint8 (B, C, H, W)."""
        if self.images is None:
            yield from self._streamed(positions, view)
            return
        for chosen in positions:
            ids = self.ids[chosen.to(self.device)]
            yield self.pipeline(self.images[ids], ids, view)

    def _streamed(self, positions: Iterable[Tensor], view: int) -> Iterator[Tensor]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="kdray-decode")
        waiting: deque = deque()
        try:
            for chosen in positions:
                waiting.append([pool.submit(self._picture, i, view) for i in self.split.ids[chosen].tolist()])
                if len(waiting) > AHEAD:
                    yield self._batch(waiting.popleft())
            while waiting:
                yield self._batch(waiting.popleft())
        finally:  # also when nobody asks for the rest
            pool.shutdown(wait=False, cancel_futures=True)

    def _picture(self, sample: int, view: int) -> Tensor:
        return self.pipeline(self.split.source.read(sample)[None], torch.tensor([sample]), view)[0]

    def _batch(self, futures: list) -> Tensor:
        pictures = [future.result() for future in futures]
        sizes = {tuple(p.shape) for p in pictures}
        if len(sizes) > 1:
            shown = " and ".join("×".join(map(str, size)) for size in sorted(sizes)[:2])
            raise ConfigError(
                f"pictures of {shown} cannot share a batch: bring them to one size, with random_resized_crop in data.augment, and "
                "resize and center_crop in data.evaluate"
            )
        return torch.stack(pictures).to(self.device, non_blocking=True)
