"""A data set: labels at hand, pictures in memory or read one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..errors import ConfigError

MEMORY_LIMIT = 2 << 30  # bytes of pictures that are held without being asked to
TOGETHER = 32  # pictures that a thread takes at a time


class Source:
    """Base class of data sets.

    labels (N,) int64 · num_classes · class_names · channels
    images: uint8 (N, C, H, W) when all pictures are in memory, else None.
    """

    images: Tensor | None = None
    _copy: tuple[torch.device, Tensor] | None = None

    def __init__(self, labels: Tensor, class_names: list[str], channels: int, images: Tensor | None = None):
        self.labels, self.class_names, self.channels, self.images = labels, class_names, channels, images

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, position: int) -> Tensor:
        """One picture, uint8 (C, H, W). Threads call it side by side.

        Raises ConfigError, naming the position and the file, when it cannot be decoded.
        """
        return self.images[position]

    def pictures(self, positions: list[int], threads: int) -> Iterator[Tensor]:
        """Those pictures in order, from memory or read by threads. To be closed when the rest is not wanted."""
        if self.images is not None:
            yield from self.images[positions]
            return
        parts = [positions[i : i + TOGETHER] for i in range(0, len(positions), TOGETHER)]
        pool = ThreadPoolExecutor(threads, thread_name_prefix="kdray-decode")
        try:
            for pictures in pool.map(lambda part: [self.read(position) for position in part], parts):
                yield from pictures
        finally:
            pool.shutdown(cancel_futures=True)

    def images_on(self, device: torch.device) -> Tensor | None:
        """`images` on a device, copied there once."""
        if self.images is None:
            return None
        # Of the two, one may name a device without its number: cuda and cuda:0.
        if self._copy is None or device not in (self._copy[0], self._copy[1].device):
            self._copy = device, self.images.to(device)
        return self._copy[1]

    def fingerprint(self) -> str:
        """sha256 of the labels, the class names and the bytes of pictures spread over the set."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        digest.update(repr((self.class_names, self.channels)).encode())
        for position in spread(len(self), 64):
            digest.update(self.read(position).numpy().tobytes())
        return digest.hexdigest()

    def load_into_memory(self, threads: int, required: bool) -> None:
        """Decode everything once. Unless `required`, only where all pictures have one size and fit in 2 GiB."""
        if self.images is not None:
            return
        first = self.read(0)
        if not required and first.numel() * len(self) > MEMORY_LIMIT:
            return
        images = torch.empty(len(self), *first.shape, dtype=torch.uint8)
        for position, picture in enumerate(self.pictures(list(range(len(self))), threads)):
            if picture.shape == first.shape:
                images[position] = picture
            elif required:
                raise ConfigError(
                    f"data.in_memory wants pictures of one size: picture {position} is {size_of(picture)}, the first "
                    f"{size_of(first)}. Leave it at auto: they are then streamed, and data.augment and data.evaluate "
                    "bring them to one size"
                )
            else:
                return
        self.images = images


def spread(n: int, most: int) -> list[int]:
    """All of 0 … n − 1, or `most` of them at equal distances."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]


def size_of(picture: Tensor) -> str:
    """Height × width, in words."""
    return "×".join(map(str, picture.shape[-2:]))
