"""Which samples of a source are used for what, and whether they are held in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from .source import Source
from .views import SAMPLES, VALIDATION, uniform

LIMIT = 2 * 2**30
"""Bytes of pictures that "auto" holds in memory."""


class Split:
    """Samples of one source. A position in the split is 0 ≤ position < len(split).

    ids: int64 (N,), their positions in the source; images: uint8 (N, C, H, W), or None when they are streamed.
    """

    def __init__(self, source: Source, ids: Tensor, images: Tensor | None = None):
        self.source, self.ids, self.images = source, ids, images
        self._copies: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        return self.source.labels[self.ids]

    def images_on(self, device: torch.device) -> Tensor:
        """`images` on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.images.to(device)
        return self._copies[device]


def divide(labels: Tensor, seed: int, validation: float, samples: int | None) -> tuple[Tensor, Tensor]:
    """Positions (train, validation) of a training set, disjoint and ascending.

    validation: share that is held out, of each class alike. samples: how many of the others are trained on, as nearly
    as many of each class as there are. Raises ConfigError when there are not enough.
    """
    everyone = torch.arange(len(labels))
    held = round(validation * len(labels))
    if validation and not 0 < held < len(labels):
        raise ConfigError(
            f"data.validation={validation} holds {held} of {len(labels)} training samples out: there must be some, and some left"
        )
    rank, size = _rank_in_class(labels, seed, VALIDATION)
    order = ((rank + 0.5) / size).argsort(stable=True)
    out, rest = order[:held].sort().values, order[held:].sort().values
    if samples is None:
        return rest, out
    if samples > len(rest):
        less = f", {held} of them held out for validation" if held else ""
        raise ConfigError(f"data.samples is {samples}, but the training set has {len(everyone)} samples{less}")
    rank, _ = _rank_in_class(labels, seed, SAMPLES, rest)
    return rest[rank.argsort(stable=True)[:samples]].sort().values, out


def _rank_in_class(labels: Tensor, seed: int, stream: int, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For each of `ids` (default: all): how many of its class come before it in a random order, and its class's size.

    A fraction of a rank, drawn too, decides between equals of several classes.
    """
    ids = torch.arange(len(labels)) if ids is None else ids
    labels = labels[ids]
    place, tie = uniform(seed, 0, ids, stream, 2).unbind(1)
    order = place.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, in random order within
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty(len(ids), dtype=torch.float64)
    rank[order] = (torch.arange(len(ids)) - starts[labels[order]]).double()
    return rank + (tie - 0.5) * 1e-3, sizes[labels]


def hold(source: Source, ids: Tensor, asked: Literal["auto"] | bool, threads: int) -> Tensor | None:
    """The pictures `ids` as uint8 (N, C, H, W), or None when they are to be streamed.

    Raises ConfigError for pictures that cannot be read, and, when `asked` is True, for pictures of several sizes.
    """
    if asked is False:
        return None
    if source.images is not None:
        return source.images if len(ids) == len(source) else source.images[ids]
    first = source.read(int(ids[0]))
    if asked == "auto" and first.numel() * len(ids) > LIMIT:
        return None
    images = torch.empty((len(ids), *first.shape), dtype=torch.uint8)

    def fill(start: int) -> int | None:
        """Decodes 64 pictures; the first of them that has another size, if any."""
        for row, position in enumerate(ids[start : start + 64].tolist(), start):
            picture = source.read(position)
            if picture.shape != first.shape:
                return position
            images[row] = picture
        return None

    with ThreadPoolExecutor(threads) as pool:
        other = next((p for p in pool.map(fill, range(0, len(ids), 64)) if p is not None), None)
        pool.shutdown(cancel_futures=True)
    if other is None:
        return images
    if asked == "auto":
        return None
    sizes = ["×".join(map(str, source.read(position).shape[1:])) for position in (int(ids[0]), other)]
    raise ConfigError(
        f"data.in_memory is true, but the pictures have several sizes: picture {int(ids[0])} is {sizes[0]}, picture {other} "
        f"is {sizes[1]}. Leave it at auto; they are then streamed, and brought to one size by data.augment and data.evaluate."
    )
