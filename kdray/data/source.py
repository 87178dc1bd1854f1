"""A data set: labels at hand, pictures in memory or read one by one."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

MEMORY_LIMIT = 2 << 30


class Source:
    """Base class of data sets.

    labels (N,) int64 · num_classes · class_names · channels · images: uint8 (N, C, H, W) when all pictures are in memory, else None.
    """

    images: Tensor | None = None

    def __init__(self, labels: Tensor, class_names: list[str], channels: int, images: Tensor | None = None):
        self.labels, self.class_names, self.channels, self.images = labels, class_names, channels, images

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, position: int) -> Tensor:
        """One picture, uint8 (C, H, W). Raises ConfigError, naming the position and the file, when it cannot be decoded."""
        return self.images[position]

    def fingerprint(self) -> str:
        """sha256 of the labels, the class names and the bytes of pictures spread over the set."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        digest.update(repr((self.class_names, self.channels)).encode())
        for position in torch.linspace(0, len(self) - 1, min(64, len(self))).long().tolist():
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
        with ThreadPoolExecutor(threads) as pool:
            for position, picture in enumerate(pool.map(self.read, range(len(self)))):
                if picture.shape != first.shape:
                    pool.shutdown(cancel_futures=True)
                    if required:
                        from ..errors import ConfigError

                        raise ConfigError(
                            f"data.in_memory wants pictures of one size: picture {position} is {tuple(picture.shape)}, the first {tuple(first.shape)}"
                        )
                    return
                images[position] = picture
        self.images = images
