"""Which samples a step sees, and as which pictures: functions of the seed, so that workers and restarts change nothing.

A view is one way to augment the whole data set. The numbers that decide how sample i looks in view v come from a
counter: a hash of (seed, v, i, stream), not from a generator that someone has advanced before.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as int64
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685

Words = int | Tensor  # signed, of 64 bits


def _shift(x: Words, bits: int) -> Words:
    """Logical shift to the right; that of int64 drags the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Words) -> Words:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection; an input bit moves half of the output's."""
    x = _wrap((x ^ _shift(x, 30)) * _MIX1)
    x = _wrap((x ^ _shift(x, 27)) * _MIX2)
    return x ^ _shift(x, 31)


def _wrap(x: Words) -> Words:
    """Python's integers grow where those of tensors wrap around."""
    return (x + 2**63) % 2**64 - 2**63 if isinstance(x, int) else x


def stream(seed: int, *key: str | int) -> int:
    """A seed for one purpose: equal on every worker and after every restart, unrelated to the seeds of other
    purposes."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(seed: int, view: int, ids: Tensor, stream: int, draws: int) -> Tensor:
    """(B, draws) numbers in [0, 1), float64, for the samples `ids` (B,) in `view`.

    `stream` tells independent users of one sample apart.
    """
    key = 0  # a plain number: nothing has to be sent to the device
    for part in (seed, view, stream):
        key = _mix(_wrap(key + part * _GOLDEN + 1))
    state = _mix(ids.to(torch.int64) * _GOLDEN + key)
    counter = torch.arange(1, draws + 1, dtype=torch.int64, device=ids.device)
    bits = _mix(state[:, None] + counter * _GOLDEN)
    return _shift(bits, 11).double() * 2.0**-53


def batches(n: int, batch_size: int, seed: int, epoch: int, last_batch: str) -> list[Tensor]:
    """The global batches of an epoch: positions in 0 … n − 1, every one once, in an order of its own each epoch."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed((seed << 20) + epoch))
    found = list(order.split(batch_size))
    if last_batch == "drop" and len(found[-1]) < batch_size:
        found.pop()
    return found


def shares(rows: int, workers: int) -> list[int]:
    """The number of rows of each worker."""
    parts = (share(rows, rank, workers) for rank in range(workers))
    return [part.stop - part.start for part in parts]


def share(rows: int, rank: int, workers: int) -> slice:
    """The rows of one worker: consecutive, and no two workers' numbers differ by more than one."""
    return slice(rows * rank // workers, rows * (rank + 1) // workers)
