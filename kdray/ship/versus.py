"""Two files of one student beside each other: what they say of the test set, how large they are, how long they take."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ..config.schema import Config
from ..data.build import Data
from ..data.feed import Feed
from ..engine.evaluate import BATCH
from ..errors import RunFailed
from ..run.analysis import agreement
from .formats import Runs

SIZES = (1, 64)
"""Batches whose time is taken."""
REPEATS = 15
LEAST = 0.01
"""Seconds of a repeat: calls of less are too short for the clock, and are repeated."""


@torch.no_grad()
def versus(files: dict[str, tuple[Path, Runs]], data: Data, config: Config) -> dict:
    """Of each of two ONNX files `accuracy`, `bytes` and `milliseconds` by size of the batch; with the `backend` that
    ran them, how many `pictures` the test set has, the `agreement` of the two (share of pictures with the same
    likeliest class), and the largest `difference` of a logit. Raises RunFailed where a logit is no finite number."""
    feed = Feed(data.test, data.evaluate, config.data.threads, torch.device("cpu"))
    said: dict[str, list[Tensor]] = {name: [] for name in files}
    some = None
    for pictures in feed.batches(torch.arange(len(data.test)).split(BATCH), view=0):
        some = pictures if some is None else some
        for name, (_, runs) in files.items():
            said[name].append(runs(pictures))
    logits = {name: torch.cat(parts) for name, parts in said.items()}
    for name, found in logits.items():
        if not found.isfinite().all():
            raise RunFailed(f"{name}: some logits of this file are no finite numbers; it is not put in place")
    labels, (one, other) = data.test.labels, logits.values()
    taken = latencies({name: runs for name, (_, runs) in files.items()}, some)
    return {
        name: {
            "accuracy": float((logits[name].argmax(1) == labels).double().mean()),
            "bytes": file.stat().st_size,
            "milliseconds": taken[name],
        }
        for name, (file, _) in files.items()
    } | {
        "backend": backend(),
        "pictures": len(labels),
        "agreement": agreement(one, other),
        "difference": float((one - other).abs().max()),
    }


def latencies(runs: dict[str, Runs], pictures: Tensor) -> dict[str, dict[int, float]]:
    """Milliseconds of a call by size of the batch: the median of repeats, in turns, so that what else the machine does
    meets all alike."""
    found: dict[str, dict[int, float]] = {name: {} for name in runs}
    for size in SIZES:
        batch = pictures[torch.arange(size) % len(pictures)]
        calls = {name: max(1, int(LEAST / max(_seconds(run, batch, 2), 1e-9))) for name, run in runs.items()}
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(REPEATS):
            for name, run in runs.items():
                taken[name].append(_seconds(run, batch, calls[name]))
        for name, values in taken.items():
            found[name][size] = 1000 * median(values)
    return found


def backend() -> str:
    """What runs an ONNX file here."""
    import onnxruntime

    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"onnxruntime {onnxruntime.__version__} (CPUExecutionProvider, {os.cpu_count()} CPUs, {name})"


def _seconds(run: Runs, batch: Tensor, calls: int) -> float:
    """Of one call."""
    start = time.perf_counter()
    for _ in range(calls):
        run(batch)
    return (time.perf_counter() - start) / calls
