"""The main loop of a config, a few steps at a time: for benchmarks. 50,000 pictures of 32×32 in memory, whose content
does not matter."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch

from kdray.config.load import load_config
from kdray.data.source import Source
from kdray.data.views import batches, share
from kdray.engine.build import Parts, build
from kdray.engine.context import Context
from kdray.engine.recording import Terms
from kdray.engine.train import BatchPlace, Job, Training
from kdray.registry import Registry
from kdray.specs import DatasetSpec
from kdray.teacher.setup import Place

ROOT = Path(__file__).parent.parent
N, CLASSES = 50_000, 100


class Silent:
    """A log that keeps nothing and asks for nothing."""

    def asked(self) -> str:
        return ""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def registry_with_random_pictures() -> Registry:
    registry = Registry.default()
    images = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8)
    source = Source(torch.arange(N) % CLASSES, [str(c) for c in range(CLASSES)], 3, images)
    registry.datasets["random"] = DatasetSpec("random", lambda *_: source, mean=(0.5,) * 3, std=(0.25,) * 3)
    return registry


def config_of(path: Path, registry: Registry, *changes: str):
    """The config, on random pictures and with a teacher that has not learned anything."""
    found = ["data.name=random", *changes]
    config = load_config(path, changes, registry=registry).config
    for name in config.all_teachers:
        where = "teacher" if config.teacher else f"teachers.{name}"
        found += [f"{where}.train=null", f"{where}.checkpoint=none"]
    return load_config(path, found, registry=registry).config


def parts_of(
    config, registry: Registry, caches: dict[str, Place] | None = None, device: torch.device = torch.device("cpu")
) -> Parts:
    return build(config, registry, Path("."), {}, device, caches)


class Steps:
    def __init__(
        self,
        config,
        registry: Registry,
        folder: Path,
        caches: dict[str, Place] | None = None,
        context: Context = Context(),
    ):
        self.config = config
        parts = parts_of(config, registry, caches, context.device)
        self.training = Training(Job(config, folder, Path(".")), parts, registry, context, Silent())
        self.stream = self.training._stream()
        self.training.counters.phase = len(self.training.phases) - 1
        self.training._begin_phase()
        self.training.trainable.set_modes(self.training.phase)
        self.order = order_of(config)
        mine = [rows[share(len(rows), context.rank, context.world_size)] for rows in self.order]
        self.mine, self.index = mine, torch.cat(mine).to(context.device).split([len(rows) for rows in mine])
        feeds = {"": self.training.feed, **self.training.view_feeds}
        self.pictures = {name: feed.batches(mine, view=0) for name, feed in feeds.items()}
        self.stored = parts.teachers.stored(mine, 0, list(config.losses))
        self.done = 0

    def seconds(self, steps: int) -> float:
        """A step's, over `steps` of them."""
        with torch.cuda.stream(self.stream):
            began = time.perf_counter()
            self.run(steps)
            if self.stream:
                self.stream.synchronize()
            return (time.perf_counter() - began) / steps

    def run(self, steps: int) -> Terms:
        """The terms of the last of them."""
        for _ in range(steps):
            views = {name: next(pictures) for name, pictures in self.pictures.items()}
            at = BatchPlace(
                self.done, len(self.order), len(self.order[self.done]), self.mine[self.done], self.index[self.done]
            )
            terms = self.training._step(at, views.pop(""), views, next(self.stored))
            self.training.counters.step += 1
            self.done += 1
        return terms


def order_of(config) -> list[torch.Tensor]:
    """The batches of the first epoch: of all samples, whose positions are those in the source."""
    return batches(N, config.data.batch_size, 0, 0, "drop")


def machine() -> dict:
    """What a result was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"machine": model, "threads": torch.get_num_threads(), "torch": torch.__version__}
