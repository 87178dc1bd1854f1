"""Stored answers of a teacher for the first steps of a run, and no others: for benchmarks of runs that end early.

    cd PROJECT; python answers.py CONFIG STEPS [KEY=VALUE…]

Makes the cache that the config names (teacher.cache.path) with what the first STEPS batches of its first epoch need,
by the code of `kdray precompute`. A run that reads it needs `teacher.cache.fill: true`, or it misses the rest of the
epoch before it begins.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.config.schema import Config
from kdray.data.views import batches
from kdray.engine.build import Parts, build
from kdray.registry import Registry
from kdray.teacher.compute import compute
from kdray.teacher.live import LiveTeacher
from kdray.teacher.setup import Place, identities, place_of, stores
from kdray.teacher.store import Store

TOGETHER = 2048
"""Answers of a shard."""


def store_of(config: Config, parts: Parts, place: Place) -> tuple[Store, LiveTeacher]:
    """The store of the one teacher's answers, made where it is not there, and who gives them."""
    section, live, needs = config.teacher, parts.teachers.by_name["teacher"], parts.needs["teacher"]
    wanted = identities(section, live, needs, parts.data, parts.views)
    found = stores(place, section, wanted, needs, parts.data, parts.views, parts.shapes["teacher"])[""]
    found.cache.create(found.identity, {"top1": 0.0, "top5": 0.0, "loss": 0.0, "samples": 0})
    return found, live


def fill(config: Config, parts: Parts, place: Place, steps: int) -> None:
    store, live = store_of(config, parts, place)
    order = batches(len(parts.data.train), config.data.batch_size, config.seed, 0, config.data.last_batch)
    ids = parts.data.train.ids[torch.cat(order[:steps])]
    keys = store.pictures.met(ids, [0])
    for begin in range(0, len(keys), TOGETHER):
        compute(keys[begin : begin + TOGETHER], store, live, config.data.threads)


def main() -> None:
    file, steps, *changes = sys.argv[1:]
    registry, project = Registry.default(), find_project()
    config = load_config(Path(file), changes, registry=registry).config
    given = {"teacher": config.teacher.checkpoint}
    parts = build(config, registry, project.data, given, torch.device("cpu"))
    wanted = identities(
        config.teacher, parts.teachers.by_name["teacher"], parts.needs["teacher"], parts.data, parts.views
    )
    fill(config, parts, place_of(config.teacher, config.data.name, wanted[""], project.cache), int(steps))


if __name__ == "__main__":
    main()
