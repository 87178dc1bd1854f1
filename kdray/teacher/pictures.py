"""The pages of a cache: which picture of a sample a view shows, and how to make it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..data.augment import Pipeline
from ..data.build import Split
from ..data.feed import Feed
from ..data.source import Source


class Pictures:
    """The pictures that a pipeline makes of the samples of a source.

    A page has at most one picture of each sample. Where a sample has a limited number of pictures, they are the pages,
    and epochs that show the same one share an answer. Else each view is a page.

    A key names a picture: page · samples + the sample's position in the source, int64.
    """

    def __init__(self, pipeline: Pipeline, source: Source):
        self.pipeline, self.source = pipeline, source
        self.variants = pipeline.variants

    def keys(self, ids: Tensor, view: int) -> Tensor:
        """Of the pictures of samples `ids` (n,) in `view`: (n,), on the CPU."""
        ids = ids.cpu()
        page = self.pipeline.variant(ids, view) if self.variants else view
        return page * len(self.source) + ids

    def met(self, ids: Tensor, views: Iterable[int]) -> np.ndarray:
        """The keys that these views meet, sorted, each once."""
        return unique(np.concatenate([self.keys(ids, view).numpy() for view in views]))

    def all(self, ids: Tensor) -> np.ndarray:
        """The keys of every picture that there is, of `ids`. Only where they are limited in number."""
        pages = torch.arange(self.variants)[:, None] * len(self.source)
        return (pages + ids.sort().values).flatten().numpy()

    def batches(self, keys: np.ndarray, size: int, threads: int, device: torch.device) -> Iterator[Tensor]:
        """The pictures of `keys`, sorted, at most `size` at a time: uint8 (b, C, H, W)."""
        page, row = map(torch.from_numpy, np.divmod(keys, len(self.source)))
        images = self.source.images_on(device)
        if self.variants and images is not None:  # whatever their pages
            for pages, rows in zip(page.to(device).split(size), row.to(device).split(size)):
                yield self.pipeline.make(images.index_select(0, rows), pages)
            return
        every = Split(self.source, torch.arange(len(self.source)))
        feed = Feed(every, _ByVariant(self.pipeline) if self.variants else self.pipeline, threads, device)
        pages, lengths = page.unique_consecutive(return_counts=True)
        for view, rows in zip(pages.tolist(), row.split(lengths.tolist())):
            yield from feed.batches(rows.split(size), view)


def describe(pipeline: Pipeline) -> dict:
    """What answers must have been given for: they depend on nothing else of the pictures."""
    steps = [[name, version, options] for name, version, options in pipeline.describe()]
    if pipeline.variants:
        return {"pages": f"the {pipeline.variants} pictures of a sample", "augmentation": steps}
    return {"pages": "views", "augmentation": steps, "seeds": pipeline.seeds()}


class _ByVariant(Pipeline):
    """A pipeline whose `view` is the number of a variant."""

    def __init__(self, pipeline: Pipeline):
        super().__init__([], pipeline.seed, pipeline)

    def __call__(self, images: Tensor, ids: Tensor, view: int) -> Tensor:
        return self.after.make(images, torch.full((len(images),), view, device=images.device))


def unique(keys: np.ndarray) -> np.ndarray:
    """Sorted, each once."""
    keys = np.sort(keys)
    return keys[np.insert(keys[1:] != keys[:-1], 0, True)] if len(keys) else keys


def missing(needed: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Those of `needed` that are not among `there`; both are sorted."""
    if not len(there):
        return needed
    place = np.searchsorted(there, needed).clip(max=len(there) - 1)
    return needed[there[place] != needed]
