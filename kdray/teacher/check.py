"""Before a run: can the caches that its config names serve it?"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from ..config.schema import Config
from ..engine.build import Parts
from ..engine.phases import phases
from ..errors import ConfigError, MismatchError
from .cache import MANIFEST, Cache
from .compute import answer
from .identity import differences
from .live import LiveTeacher
from .plan import Plan, views_met
from .setup import Place, identities, place_of, stores
from .store import Store

SPOTS = 8
"""Answers that are compared with what the teacher says now."""


def usable_caches(
    config: Config, parts: Parts, caches: Path, say: Callable[[str], None], untrained: Collection[str] = ()
) -> dict[str, Place]:
    """By teacher, the cache that a run is to use. parts: with all teachers' weights, but for those of the untrained
    ones, of which no more can be known than whether a cache could serve their losses.

    Raises ConfigError for a loss that no cache can serve, MismatchError for a cache that is not there, damaged,
    incomplete, or of something else; where the config has a fallback, `say`s so and leaves the teacher live.
    """
    found = {}
    for name, section in config.all_teachers.items():
        if section.cache:
            try:
                if name in untrained:
                    refuse_unserved(name, config, parts)
                else:
                    found[name] = _usable(name, config, parts, caches)
            except (ConfigError, MismatchError) as error:
                if section.cache.fallback != "live":
                    raise
                why = " ".join(line.strip() for line in str(error).splitlines())
                say(f"{name} answers live (cache.fallback), since its cache cannot serve: {why}")
    return found


def refuse_unserved(name: str, config: Config, parts: Parts) -> None:
    """Raises ConfigError where a loss reads of this teacher what no cache holds."""
    if beyond := parts.needs[name].beyond:
        what = "; ".join(f"losses.{label} reads its {' and '.join(outputs)}" for label, outputs in beyond.items())
        key = "teacher" if config.teacher else f"teachers.{name}"
        raise ConfigError(
            f"{key}.cache: a cache holds logits and embedding, and {what}. Remove {key}.cache and this loss learns "
            "from the live teacher, or take a loss that a cache can serve: column `cache` of `kdray list distillers`"
        )


def _usable(name: str, config: Config, parts: Parts, caches: Path) -> Place:
    refuse_unserved(name, config, parts)
    section, live, needs = config.all_teachers[name], parts.teachers.by_name[name], parts.needs[name]
    wanted = identities(section, live, needs, parts.data, parts.views)
    place = place_of(section, config.data.name, wanted[""], caches)
    views = views_met(config, phases(parts.objective.by_label()))
    for kind, store in stores(place, section, wanted, needs, parts.data, parts.views, parts.shapes[name]).items():
        manifest = store.cache.compare(wanted[kind])
        if place.fill:
            continue
        if manifest is None:
            raise MismatchError(_absent(store.cache, wanted[kind], caches))
        check_complete(Plan.make(store, parts.data, views))
        _check_shards(store)
        _check_spots(store, live, store.pictures.met(parts.data.train.ids, views), config.data.threads)
    return place


def _absent(cache: Cache, wanted: dict, caches: Path) -> str:
    """What to say where there is no cache: also where there is one of just this, or which is nearest, and how it
    differs."""
    lines = [f"there is no teacher cache at {cache.where}: `kdray precompute` with the same config makes it."]
    near = []
    for file in sorted(caches.glob(f"*/{cache.folder}/{MANIFEST}")):
        try:
            near.append((file.parent, differences(json.loads(file.read_text())["identity"], wanted)))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue  # not what is asked for, in any case
    if near:
        path, differing = min(near, key=lambda entry: len(entry[1]))
        what = "is of something else:" if differing else "is of just this: give it as teacher.cache.path"
        lines += [f"The nearest there is, {path}, {what}", *differing]
    return "\n".join(lines)


def check_complete(plan: Plan) -> None:
    """Raises MismatchError where answers are missing."""
    if plan.missing:
        pages = plan.pages_missing()
        of = "pictures" if plan.store.pictures.variants else "views"
        first = ", ".join(map(str, pages[:5])) + (" …" if len(pages) > 5 else "")
        raise MismatchError(
            f"{plan.store.cache.where} is not complete: it has {plan.needed - plan.missing:,} of the {plan.needed:,} "
            f"answers that this run needs; missing are answers on {of} {first} ({len(pages)} of them). "
            "`kdray precompute` with the same config adds what is missing."
        )


def _check_shards(store: Store) -> None:
    """Raises MismatchError for the first damaged one. What comes from elsewhere is checked as it comes."""
    for output in store.outputs if store.cache.storage.is_local else ():
        for _, error in store.cache.check(output, store.cache.shards(output)):
            if error:
                raise error


def _check_spots(store: Store, live: LiveTeacher, keys: np.ndarray, threads: int) -> None:
    """Raises MismatchError where the teacher says something else now. The identity tells that network and pictures have
    the same names and numbers; this, that they still mean the same."""
    if other := differing_spots(store, live, keys, SPOTS, threads):
        raise MismatchError(f"{store.cache.where}: {other}")


def differing_spots(store: Store, live: LiveTeacher, keys: np.ndarray, count: int, threads: int) -> str:
    """What differs between the stored answers to `count` of `keys` and the teacher's now; "" where nothing does."""
    chosen = keys[np.unique(np.linspace(0, len(keys) - 1, count).astype(int))]
    now = answer(chosen, store, live, threads)
    loose = 0.05 if "bf16" in (live.precision.name, store.codec.dtype) else 5e-3
    for output, reader in store.readers.items():
        rows = reader.load(chosen)
        then = rows.take(rows.find(chosen))
        a, b = then["values"].double(), now[output]["values"].double()
        differs = (a - b).abs().amax(dim=1) > loose * b.abs().max()
        if differs.any():
            i = int(differs.nonzero()[0, 0])
            page, sample = divmod(int(chosen[i]), store.samples)
            at = int((a[i] - b[i]).abs().argmax())
            return (
                f"{int(differs.sum())} of {len(chosen)} stored {output} are not what the teacher answers now: of "
                f"sample {sample}, page {page}, {a[i, at]:.5g} is stored, and it answers {b[i, at]:.5g}. The network's "
                "code, an augmentation or the pictures have changed without a change of name, version or fingerprint."
            )
    return ""
