"""Learning rate and loss weights as pure functions of the place in the run, so that nothing of them needs to be
saved."""

from __future__ import annotations

import math

from ..config.schema import OptionSchedule, ScheduleConfig, WeightSchedule


def lr_factor(schedule: ScheduleConfig, epoch: float) -> float:
    """What the base learning rate is multiplied by at `epoch`, counted from 0, with the fraction of the running one.

    multistep follows RepDistiller: milestone 150 means that 150 epochs are done at the full rate. Warm-up lies within
    the same epochs.
    """
    if epoch < schedule.warmup:
        return epoch / schedule.warmup
    if schedule.name == "multistep":
        return schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    if schedule.name == "step":
        return schedule.gamma ** (int(epoch) // schedule.step)
    if schedule.name == "cosine":
        done = (epoch - schedule.warmup) / max(schedule.epochs - schedule.warmup, 1e-12)
        return schedule.end + (1 - schedule.end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return 1.0


def loss_weight(weight: float | WeightSchedule, epoch: float, epochs: int) -> float:
    """The weight of a loss at `epoch` of `epochs`, counted as above."""
    if not isinstance(weight, WeightSchedule):
        return float(weight)
    return _between(weight.value, weight.start or 0.0, weight.warmup, weight.end or 0.0, weight.decay, epoch, epochs)


def option_value(value: float, moves: OptionSchedule, epoch: float, epochs: int) -> float:
    """The value at `epoch` of `epochs` of an option that the config lets move."""
    return _between(value, moves.start, moves.warmup, moves.end, moves.decay, epoch, epochs)


def _between(value, start, warmup, end, decay, epoch, epochs) -> float:
    """From `start` to `value` over the first `warmup` epochs, from `value` to `end` over the last `decay`."""
    if warmup and epoch < warmup:
        return start + (value - start) * epoch / warmup
    left = epochs - epoch
    if decay and left < decay:
        return end + (value - end) * left / decay
    return value
