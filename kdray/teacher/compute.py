"""The work of `kdray precompute`: pictures to answers to shards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..distiller import Outputs
from ..engine.evaluate import together
from .live import LiveTeacher
from .store import Store


def answer(keys: np.ndarray, store: Store, teacher: LiveTeacher, threads: int) -> dict[str, dict[str, Tensor]]:
    """By output, the stored tensors of the teacher's answers to `keys`, sorted."""
    found: dict[str, list[dict[str, Tensor]]] = {output: [] for output in store.outputs}
    for outputs in _heard(keys, store, teacher, threads):
        for output in store.outputs:
            parts = store.codec.encode(output, getattr(outputs, output))
            found[output].append({name: x.cpu() for name, x in parts.items()})
    return {
        output: {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for output, parts in found.items()
    }


def write(keys: np.ndarray, store: Store, answers: dict[str, dict[str, Tensor]]) -> None:
    """Store what `answer` said of `keys`, in a shard an output."""
    for output, parts in answers.items():
        store.cache.write(output, keys, parts, store.samples)


def compute(keys: np.ndarray, store: Store, teacher: LiveTeacher, threads: int) -> None:
    write(keys, store, answer(keys, store, teacher, threads))


def _heard(keys: np.ndarray, store: Store, teacher: LiveTeacher, threads: int) -> Iterator[Outputs]:
    """The teacher's outputs, a batch at a time. A thread makes the next pictures meanwhile."""
    device = next(teacher.parameters()).device
    with ThreadPoolExecutor(1, thread_name_prefix="kdray-pictures") as pool:
        batches = store.pictures.batches(keys, together(device), threads, device)
        coming = pool.submit(next, batches, None)
        while (pictures := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield teacher(pictures)
