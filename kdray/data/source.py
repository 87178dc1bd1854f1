"""Where pictures come from: a tensor in memory, or encoded files that are decoded one by one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import ConfigError


class Source:
    """One split of a data set, in its original order. Subclasses fill in the attributes."""

    labels: Tensor
    """int64 (N,), each 0 ≤ label < num_classes."""
    num_classes: int
    class_names: list[str]
    channels: int
    images: Tensor | None = None
    """uint8 (N, C, H, W) where all pictures are in memory already; else `read` gives them one by one."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, position: int) -> Tensor:
        """Picture `position` as uint8 (C, H, W). Called from several threads at once.

        Raises ConfigError that names the picture when it cannot be read.
        """
        return self.images[position]

    def raw(self, position: int) -> bytes:
        """The bytes that the picture is made of."""
        return self.read(position).numpy().tobytes()

    def listing(self) -> Iterable[str]:
        """A line a picture that tells it apart without looking inside, as its name and size."""
        return ()

    def fingerprint(self) -> str:
        """sha256, in hex, over classes, labels, `listing` and 1,024 pictures spread evenly over the set.

        The same wherever the files lie, and however they are held.
        """
        digest = hashlib.sha256(repr((self.class_names, self.channels, len(self))).encode())
        digest.update(self.labels.numpy().tobytes())
        for line in self.listing():
            digest.update(line.encode() + b"\n")
        for position in spread(len(self), 1024):
            digest.update(self.raw(position))
        return digest.hexdigest()


class Encoded(Source):
    """Pictures as PNG, JPEG and the like: `raw` gives the file's bytes, `where` says in words where they lie."""

    def __init__(self, labels: Tensor, class_names: list[str], channels: int):
        self.labels, self.class_names, self.channels = labels, class_names, channels
        self.num_classes = len(class_names)

    def where(self, position: int) -> str:
        raise NotImplementedError

    def read(self, position: int) -> Tensor:
        try:
            return decode(self.raw(position), self.channels)
        except Exception as error:  # PIL raises of every kind at bad files
            raise ConfigError(
                f"picture {position} of the data set cannot be read: {self.where(position)}: {error}. "
                "Repair the file, or take it out of the data set."
            ) from error


def decode(data: bytes, channels: int) -> Tensor:
    """An encoded picture as uint8 (C, H, W), in grey for 1 channel and RGB for 3.

    By PIL, which raises at truncated and damaged files; torchvision's decoder is faster on small pictures, but 0.29
    ends the process with a segmentation fault at a PNG with a wrong checksum.
    """
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    with Image.open(io.BytesIO(data)) as image:
        pixels = image if image.mode == mode else image.convert(mode)
        flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
        return flat.view(pixels.height, pixels.width, channels).permute(2, 0, 1).contiguous()


def spread(n: int, most: int) -> range | list[int]:
    """All positions of n, or `most` of them at equal distances."""
    return range(n) if n <= most else [i * n // most for i in range(most)]
