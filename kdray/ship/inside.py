"""What a network makes of test pictures before it answers: how its stages arrange them, and where its embedding puts
them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.build import Split
from ..data.feed import Feed
from ..data.source import spread
from ..engine.evaluate import BATCH
from ..errors import ConfigError
from ..launch.measure import Rebuilt
from ..models.taps import Tapped, probe
from ..run.cka import LEAST, centred_gram

COMPARED = 512
"""Most test pictures of which stages are compared, spread over the test set."""
SIDE = 8
"""Larger maps are averaged to so many positions a side, more tokens to the square of it: bounds the memory."""
MAPPED = 500
"""Most test pictures of a map of embeddings, spread over those of its classes."""
COLOURED = 10
"""Most classes of such a map; of more, some at equal distances."""
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Inside:
    """grams: by stage, its layer's name, the U-centred Gram matrix (n, n); the embedding comes last. embedding: (m, D).
    missing: what is not there, and why."""

    grams: dict[str, Tensor]
    embedding: Tensor | None
    missing: dict[str, str]

    @cached_property
    def map(self) -> list[list[float]]:
        """The embeddings in two dimensions, by t-SNE (van der Maaten and Hinton, JMLR 2008), from a fixed seed."""
        from sklearn.manifold import TSNE  # it takes a second

        n, width = self.embedding.shape
        begin = "pca" if width > 1 else "random"
        found = TSNE(perplexity=min(PERPLEXITY, (n - 1) / 3), init=begin, random_state=0)
        return found.fit_transform(self.embedding.numpy()).tolist()


STAGES, MAP = "similarity of stages", "map of embeddings"


@torch.no_grad()
def look(found: Rebuilt, split: Split) -> Inside:
    student, precision, missing, wants = found.parts.student, found.parts.precision, {}, set()
    for kind, what, least in (("features", STAGES, LEAST), ("embedding", MAP, 10)):
        try:
            if len(split) < least:
                raise ConfigError(f"it takes {least} test pictures at least")
            tapped = Tapped(student.model, student.layers, {kind}, student.name)
            probe(tapped, next(_pictures(found, split, torch.arange(2))))
            wants.add(kind)
        except ConfigError as error:
            missing[what] = str(error)
    tapped = Tapped(student.model, student.layers, wants, student.name)
    grams, embedding = {}, None
    if "features" in wants:
        grams = {stage: centred_gram(x) for stage, x in _stages(found, tapped, split).items()}
    if "embedding" in wants:
        some = _pictures(found, split, mapped(split.labels))
        embedding = torch.cat([precision.run(tapped, x).embedding.float().cpu() for x in some])
        if not embedding.std(0).any():
            embedding, missing[MAP] = None, "all pictures have the same embedding"
    return Inside(grams, embedding, missing)


def mapped(labels: Tensor) -> Tensor:
    """Positions of the pictures of a map of embeddings."""
    present = labels.unique()
    among = torch.isin(labels, present[spread(len(present), COLOURED)]).nonzero()[:, 0]
    return among[even(labels[among], MAPPED)]


def even(labels: Tensor, most: int) -> Tensor:
    """Positions of at most so many pictures, of each class its share; rising."""
    by_class = labels.argsort(stable=True)
    return by_class[spread(len(labels), most)].sort().values


def _stages(found: Rebuilt, tapped: Tapped, split: Split) -> dict[str, Tensor]:
    """By layer, what it says of the compared pictures: (n, D), fp32 on the CPU."""
    parts: dict[str, list[Tensor]] = {}
    for pictures in _pictures(found, split, even(split.labels, COMPARED)):
        outputs = found.parts.precision.run(tapped, pictures)
        said = dict(zip(tapped.layers.features, outputs.features))
        if outputs.embedding is not None:
            said["embedding"] = outputs.embedding
        for name, x in said.items():
            parts.setdefault(name, []).append(pooled(x).float().cpu())
    return {name: torch.cat(some) for name, some in parts.items()}


def pooled(x: Tensor) -> Tensor:
    """Maps (B, C, H, W), tokens (B, T, D) or vectors as vectors (B, …), the first two of a bounded number of places."""
    if x.ndim == 4:
        x = F.adaptive_avg_pool2d(x, [min(SIDE, side) for side in x.shape[2:]])
    elif x.ndim == 3:
        x = F.adaptive_avg_pool1d(x.mT, min(SIDE**2, x.shape[1]))
    return x.flatten(1)


def _pictures(found: Rebuilt, split: Split, positions: Tensor) -> Iterator[Tensor]:
    """Normalised, a batch at a time."""
    feed = Feed(split, found.parts.data.evaluate, found.threads, found.parts.device)
    for pictures in feed.batches(positions.split(BATCH), view=0):
        yield found.normalize(pictures, found.parts.precision.dtype)
