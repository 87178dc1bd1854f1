"""Which samples a step sees, and as which pictures: pure functions of the seed, so that workers and restarts change nothing.

A view is one way to augment the whole data set. The numbers that decide how sample i looks in view v come from a counter: a hash of
(seed, v, i, stream), not from a generator that someone has advanced before.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as int64
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64 bits in which every input bit moves half of the output's."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def uniform(seed: int, view: int, ids: Tensor, stream: int, draws: int) -> Tensor:
    """(B, draws) numbers in [0, 1), float64, for the samples `ids` (B,) in `view`. `stream` tells independent users of one sample apart."""
    key = torch.tensor([seed, view, stream], dtype=torch.int64, device=ids.device)
    state = torch.zeros((), dtype=torch.int64, device=ids.device)
    for part in key:
        state = _mix(state + part * _GOLDEN + 1)
    state = _mix(state + ids.to(torch.int64) * _GOLDEN)
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


def share(rows: int, rank: int, workers: int) -> slice:
    """The rows of one worker: consecutive, and no two workers' numbers differ by more than one."""
    return slice(rows * rank // workers, rows * (rank + 1) // workers)
