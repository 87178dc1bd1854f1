"""A stop that leaves nothing at work.

Ray Tune frees what it holds after an `Exception`, and only then: what is interrupted by another one keeps its processes
and their share of the cluster for as long as the session lives.
"""

from __future__ import annotations

import ray
from ray import tune

from ...errors import Stopped


class _Asked(Exception):
    pass


def stop(trials: list) -> None:
    """For a callback: end the processes of all trials, and `fit`. Each has its checkpoints; Ray Tune by itself would
    let them train for some seconds more."""
    for trial in trials:
        if actor := trial.temporary_state.ray_actor:
            ray.kill(actor)
    raise _Asked


def fit(tuner: tune.Tuner, stopped: str) -> None:
    """Raises Stopped, saying so, where a callback calls `stop`."""
    try:
        tuner.fit()
    except _Asked:
        raise Stopped(stopped) from None
