"""What is in caches: for `kdray cache`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ..config.schema import Config, TeacherConfig
from ..data.build import pipeline
from ..data.mix import MIXES
from ..errors import MismatchError
from .cache import MANIFEST, Cache
from .codec import OUTPUTS
from .setup import codec_of, network_of
from .storage import Storage, open_storage

MIRROR = "mirror"
"""The folder of copies of remote shards, among the caches."""


def caches_at(storage: Storage) -> list[Cache]:
    """The cache there, and those of further views in it."""
    views = [folder for folder in storage.folders() if folder.startswith("view-")]
    return [cache for cache in (Cache(storage, folder) for folder in ("", *views)) if _has_manifest(cache)]


def caches_in(folder: Path) -> list[Path]:
    """The caches in a folder of such."""
    return sorted(file.parent for file in folder.glob(f"*/{MANIFEST}"))


def _has_manifest(cache: Cache) -> bool:
    return MANIFEST in cache.storage.list(cache.folder)


def about(cache: Cache) -> dict:
    """The facts of one. Where its manifest cannot be read, `error` says why."""
    outputs, size = {}, 0
    for output in OUTPUTS:
        name = f"{cache.folder}/{output}" if cache.folder else output
        if shards := cache.shards(output):
            outputs[output] = sum(shard.rows for shard in shards)
            size += sum(cache.storage.list(name).values())
    facts = {"path": cache.where, "answers": outputs, "bytes": size}
    try:
        manifest = cache.manifest()
    except MismatchError as error:
        return {**facts, "error": str(error)}
    return {**facts, **manifest.identity, "accuracy": manifest.accuracy}


def unreferenced(folder: Path, configs: list[Config], registry) -> Iterator[tuple[Path, str]]:
    """The caches in a folder that none of `configs` refers to, and why.

    One refers to a cache by its path, or by the same network, arithmetic, augmentation and stored form. Weights, data
    and seed are not looked at: what may still be of use is kept.
    """
    sections = [(config, section) for config in configs for section in config.all_teachers.values()]
    paths = {_folder(s.cache.path) for _, s in sections if s.cache and s.cache.path}
    asked = [_asked(config, section, registry) for config, section in sections]
    for path in caches_in(folder):
        if path.resolve() in paths:
            continue
        try:
            there = Cache(open_storage(str(path))).manifest().identity
        except MismatchError as error:
            yield path, str(error)
            continue
        steps = [[name, version, _options(options)] for name, version, options in there["pictures"]["augmentation"]]
        of_teacher = {key: value for key, value in there["teacher"].items() if key in ("model", "options", "precision")}
        if {"augmentation": steps, "stored": there["stored"], "teacher": of_teacher} not in asked:
            yield path, "no config has this network, arithmetic, augmentation and stored form"
    for path in sorted((folder / MIRROR).glob("*")):
        yield path, "copies of remote shards, which are fetched again when they are needed"


def _folder(path: str) -> Path | None:
    """Of this machine, where the path or URL of a cache names one."""
    if "://" in path and urlsplit(path).scheme not in ("file", "local"):
        return None
    return open_storage(path).path.resolve()


def _asked(config: Config, section: TeacherConfig, registry) -> dict:
    """What can be said of the identity of its cache from a config alone."""
    precision = section.precision or config.engine.precision
    steps = [list(step) for step in pipeline(config.data.augment, registry, config.seed).describe()]
    if config.data.mix:
        way, options = config.data.mix.way
        steps.append([way, MIXES[way].version, options.model_dump()])
    return {
        "augmentation": [[name, version, _options(options)] for name, version, options in steps],
        "stored": codec_of(section).describe(),
        "teacher": {**network_of(section), "precision": precision},
    }


def _options(options: dict) -> dict:
    """Those that a config gives: not the digest of the samples that are mixed."""
    return {key: value for key, value in options.items() if key != "partners"}
