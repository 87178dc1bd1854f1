"""What the engine costs: pictures a second of a student step, kdray's loop against a plain PyTorch loop of the same
work.

    python benchmarks/overhead.py [--model resnet8x4] [--precision fp32] [--rounds 7] [--steps 10]

One process, cross-entropy alone, batch 64 of 32×32 pictures from memory, channels_last, crop and flip. Rounds of the
two loops take turns, so that a slow moment of the machine hits both; the figure is the median of the rounds' ratios.
Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from steps import Silent

from kdray.config.schema import Config
from kdray.data.source import Source
from kdray.engine.build import build
from kdray.engine.context import Context
from kdray.engine.train import Job, Training
from kdray.registry import Registry

N, CLASSES, BATCH = 1280, 100, 64


def config(model: str, precision: str) -> Config:
    return Config.model_validate(
        {
            "name": "overhead",
            "data": {"name": "random", "batch_size": BATCH, "augment": ["crop", "flip"]},
            "student": {"model": model},
            "losses": {"ce": {}},
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"epochs": 10_000},
            "engine": {"precision": precision},
        }
    )


def pictures() -> Source:
    images = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8)
    return Source(torch.arange(N) % CLASSES, [str(c) for c in range(CLASSES)], 3, images)


def plain_epoch(network, optimizer, images, labels, mean, std, precision):
    """The loop that one would write by hand, with the same augmentation done in a batch."""
    order = torch.randperm(N)
    for rows in order.split(BATCH):
        x = F.pad(images[rows], (4, 4, 4, 4))
        windows = x.unfold(2, 32, 1).unfold(3, 32, 1)
        x = windows[torch.arange(len(rows)), :, torch.randint(0, 9, (len(rows),)), torch.randint(0, 9, (len(rows),))]
        x = torch.where((torch.rand(len(rows)) < 0.5)[:, None, None, None], x.flip(-1), x)
        x = ((x.float() / 255 - mean) / std).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet8x4")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    registry = Registry.default()
    from kdray.specs import DatasetSpec

    source = pictures()
    registry.datasets["random"] = DatasetSpec(
        "random", lambda options, path, split: source, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    run = config(args.model, args.precision)
    parts = build(run, registry, Path("."), {}, torch.device("cpu"))
    from kdray.models.build import build_model

    network = build_model(run.student, registry, CLASSES, 3).model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Job(run, Path(folder), Path(".")), parts, registry, Context(), Silent())
        training.started = time.monotonic()
        training._finish_epoch = lambda terms, loss, rate: None  # evaluation and checkpoints are not part of the step

        def ours():
            training._epoch()

        def theirs():
            plain_epoch(network, optimizer, source.images, source.labels, mean, std, args.precision)

        ours(), theirs()  # warm up
        rows = []
        for number in range(args.rounds):
            pair = {}
            for name, epoch in (
                (("kdray", ours), ("plain", theirs)) if number % 2 else (("plain", theirs), ("kdray", ours))
            ):
                began = time.perf_counter()
                epoch()
                pair[name] = N / (time.perf_counter() - began)
            rows.append(pair)
            print(
                f"round {number + 1}: kdray {pair['kdray']:,.0f}, plain {pair['plain']:,.0f} pictures/s, ratio "
                f"{pair['kdray'] / pair['plain']:.3f}"
            )
    result = {
        "model": args.model,
        "precision": args.precision,
        "batch": BATCH,
        "kdray": statistics.median(r["kdray"] for r in rows),
        "plain": statistics.median(r["plain"] for r in rows),
        "ratio": statistics.median(r["kdray"] / r["plain"] for r in rows),
        "rounds": args.rounds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }
    print(f"median: kdray {result['kdray']:,.0f}, plain {result['plain']:,.0f} pictures/s, ratio {result['ratio']:.3f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / f"overhead-{args.model}-{args.precision}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
