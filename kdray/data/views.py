"""Everything that is drawn about the data, as pure functions of (seed, view or epoch, sample): the same at any number of
workers, in any order, after any restart, on any device.

The generator is counter-based: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) with its state computed from the key.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

# Streams of draws that are not augmentations; those count their place in the pipeline, from 0.
ORDER, SAMPLES, VALIDATION = -1, -2, -3

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)


def uniform(seed: int, view: int, ids: Tensor, stream: int, draws: int) -> Tensor:
    """Numbers in [0, 1), float64 (B, draws), on the device of `ids`.

    Row i depends on (seed, view, stream, ids[i]) alone. ids: int64 (B,), original indices of the samples.
    """
    key = 0
    for part in (seed, view, stream):
        key = _mix_int((key + _GOLDEN & _WORD) ^ (part & _WORD))
    state = _mix(ids * _signed(_GOLDEN) + _signed(key))
    counter = torch.arange(1, draws + 1, device=ids.device) * _signed(_GOLDEN)
    return _shift_right(_mix(state[:, None] + counter), 11).double() * 2.0**-53


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits n samples: int64 (n,), a permutation."""
    return uniform(seed, epoch, torch.arange(n), ORDER, 1)[:, 0].argsort(stable=True)


def batches(n: int, batch_size: int, seed: int, epoch: int, last_batch: Literal["keep", "drop"]) -> list[Tensor]:
    """The global batches of an epoch: positions 0..n-1, in the order of training.

    Raises ConfigError when "drop" leaves no batch at all.
    """
    whole = list(epoch_order(n, seed, epoch).split(batch_size))
    if last_batch == "drop" and len(whole[-1]) < batch_size:
        whole.pop()
    if not whole:
        raise ConfigError(
            f"data.last_batch is 'drop', and {n} training samples do not fill one batch of {batch_size}: "
            f"nothing is left to train on. Use last_batch: keep, or data.batch_size of at most {n}."
        )
    return whole


def share(n_rows: int, rank: int, world: int) -> slice:
    """The contiguous part of n_rows that belongs to a worker; parts differ by one row at most."""
    return slice(n_rows * rank // world, n_rows * (rank + 1) // world)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, whose products wrap as unsigned ones do."""
    for shift, factor in _FACTORS:
        x = (x ^ _shift_right(x, shift)) * _signed(factor)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    """The same on a plain integer, 0 ≤ x < 2^64."""
    for shift, factor in _FACTORS:
        x = (x ^ x >> shift) * factor & _WORD
    return x ^ x >> 31


def _shift_right(x: Tensor, by: int) -> Tensor:
    """Logical shift: torch's own drags the sign along."""
    return (x >> by) & (2 ** (64 - by) - 1)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
