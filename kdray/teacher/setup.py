"""From a teacher and what is asked of it to its stores, with the identity that their caches must have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..config.schema import CacheConfig, TeacherConfig
from ..data.augment import Pipeline
from ..data.build import Data
from ..distiller import Shapes
from .cache import Cache
from .cached import CachedTeacher
from .codec import Codec
from .identity import short, weights_digest
from .live import LiveTeacher
from .needs import Needs
from .pictures import Pictures, describe
from .storage import open_storage
from .store import Store


@dataclass(frozen=True)
class Place:
    """Where the cache of a teacher is, and what a run does with it."""

    where: str
    mirror: Path
    """Of remote files, on each machine."""
    fill: bool = False


def place_of(section: TeacherConfig, data_name: str, identity: dict, caches: Path) -> Place:
    """The place that the config names, else one in the folder `caches` named after what is in it."""
    cache = section.cache or CacheConfig()
    network = section.model.rpartition(":")[2].replace("/", "_")
    where = cache.path or str(caches / f"{network}-{data_name}-{short(identity)}")
    if "://" not in where:
        where = os.path.abspath(os.path.expanduser(where))  # workers have other current directories
    return Place(where, caches / "mirror" / short(identity), cache.fill)


def identities(
    section: TeacherConfig, live: LiveTeacher, needs: Needs, data: Data, views: dict[str, Pipeline]
) -> dict[str, dict]:
    """By kind of pictures, what the answers depend on."""
    common = {
        "teacher": {
            **network_of(section),
            "weights": weights_digest(live.network.model),
            "normalize": [list(live.normalize.mean), list(live.normalize.std)],
            "precision": live.precision.name,
        },
        "data": {"fingerprint": data.fingerprint(), "samples": len(data.train.source)},
        "stored": codec_of(section).describe(),
    }
    pictures = _pictures(needs, data, views)
    return {kind: {**common, "pictures": describe(pictures[kind].pipeline)} for kind in needs.outputs}


def stores(
    place: Place,
    section: TeacherConfig,
    wanted: dict[str, dict],
    needs: Needs,
    data: Data,
    views: dict[str, Pipeline],
    shapes: Shapes,
) -> dict[str, Store]:
    """By kind of pictures; those of further views have a folder of their own in the cache. wanted: identities."""
    storage, pictures = open_storage(place.where, place.mirror), _pictures(needs, data, views)
    return {
        kind: Store(
            Cache(storage, f"view-{kind}" if kind else ""),
            pictures[kind],
            {output: getattr(shapes, output)[0] for output in outputs},
            codec_of(section),
            wanted[kind],
        )
        for kind, outputs in needs.outputs.items()
    }


def cached_teacher(
    place: Place,
    section: TeacherConfig,
    live: LiveTeacher,
    needs: Needs,
    data: Data,
    views: dict[str, Pipeline],
    shapes: Shapes,
) -> CachedTeacher:
    """The teacher as a run with a cache has it. Raises MismatchError where the cache is of something else."""
    wanted = identities(section, live, needs, data, views)
    found = stores(place, section, wanted, needs, data, views, shapes)
    manifests = [store.cache.compare(store.identity) for store in found.values()]
    accuracy = manifests[0].accuracy if all(manifests) else None
    return CachedTeacher(found, accuracy, live, keep=place.fill)


def network_of(section: TeacherConfig) -> dict:
    layers = {"layers": section.layers.model_dump(mode="json")} if section.layers else {}
    return {"model": section.model, "options": {**section.options, **layers}}


def codec_of(section: TeacherConfig) -> Codec:
    cache = section.cache or CacheConfig()
    return Codec(cache.dtype, cache.top_k)


def _pictures(needs: Needs, data: Data, views: dict[str, Pipeline]) -> dict[str, Pictures]:
    pipelines = {"": data.augment, **views}
    return {kind: Pictures(pipelines[kind], data.train.source) for kind in needs.outputs}
