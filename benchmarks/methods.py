"""What each method's step costs beside plain KD's: seconds a step of the main loop, teacher included.

    python benchmarks/methods.py [NAME…] [--precision bf16] [--rounds 3] [--steps 3]

One process; ResNet-32x4 teaches ResNet-8x4, the losses of the method's own config, batch 64 of 32×32 pictures out of
50,000 in memory (their content does not matter). Before and after each round of a method comes one of KD, so that a
slow moment of the machine hits both; the figure is the median of the rounds' ratios. Writes
benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from kdray.config.load import load_config
from kdray.data.source import Source
from kdray.data.views import batches
from kdray.engine.build import build
from kdray.engine.context import Context
from kdray.engine.train import Job, Training
from kdray.registry import Registry
from kdray.specs import DatasetSpec

ROOT = Path(__file__).parent.parent
N, CLASSES = 50_000, 100


class Silent:
    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Steps:
    """The main loop of a config, a few steps at a time."""

    def __init__(self, path: Path, registry: Registry, precision: str, folder: Path):
        changes = ["data.name=random", "teacher.train=null", "teacher.checkpoint=none", f"engine.precision={precision}"]
        config = load_config(path, registry=registry).config
        changes = changes if config.teacher else [c for c in changes if not c.startswith("teacher")]
        self.config = load_config(path, changes, registry=registry).config
        parts = build(self.config, registry, Path("."), {}, torch.device("cpu"))
        self.training = Training(Job(self.config, folder, Path(".")), parts, registry, Context(), Silent())
        self.training.counters.phase = len(self.training.phases) - 1
        self.training._begin_phase()
        self.training.trainable.set_modes(self.training.phase)
        self.order = batches(N, self.config.data.batch_size, 0, 0, "drop")
        feeds = {"": self.training.feed, **self.training.view_feeds}
        self.pictures = {name: feed.batches(self.order, view=0) for name, feed in feeds.items()}
        self.done = 0

    def seconds(self, steps: int) -> float:
        """A step's, over `steps` of them."""
        began = time.perf_counter()
        for _ in range(steps):
            views = {name: next(pictures) for name, pictures in self.pictures.items()}
            rows = self.order[self.done]
            self.training._step(rows, rows, views.pop(""), views, self.done, len(self.order))
            self.training.counters.step += 1
            self.done += 1
        return (time.perf_counter() - began) / steps


def config_of(name: str) -> Path | None:
    found = [ROOT / "configs" / folder / f"{name}.yaml" for folder in ("methods", "repdistiller", ".")]
    return next((path for path in found if path.exists()), None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    registry = Registry.default()
    images = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8)
    source = Source(torch.arange(N) % CLASSES, [str(c) for c in range(CLASSES)], 3, images)
    registry.datasets["random"] = DatasetSpec("random", lambda *_: source, mean=(0.5,) * 3, std=(0.25,) * 3)
    names = args.names or sorted(name for name in registry.distillers if config_of(name))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kd = Steps(config_of("kd"), registry, args.precision, Path(folder) / "kd")
        kd.seconds(args.steps)  # warm up
        for name in names:
            method = Steps(config_of(name), registry, args.precision, Path(folder) / name)
            method.seconds(args.steps)
            pairs, before = [], kd.seconds(args.steps)
            for _ in range(args.rounds):
                mine, after = method.seconds(args.steps), kd.seconds(args.steps)
                pairs.append((mine, (before + after) / 2))
                before = after
            row = {
                "method": name,
                "seconds": statistics.median(mine for mine, _ in pairs),
                "ratio": statistics.median(mine / base for mine, base in pairs),
            }
            rows.append(row)
            print(f"{name:12} {row['seconds']:.3f} s a step, {row['ratio']:.2f} of KD's", flush=True)
            del method
            gc.collect()
    result = {
        "precision": args.precision,
        "rounds": args.rounds,
        "steps": args.steps,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "methods": rows,
    }
    if not args.names:
        (Path(__file__).parent / "results" / "methods.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
