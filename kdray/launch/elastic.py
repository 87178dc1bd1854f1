"""A run whose number of workers follows the cluster (`scale.num_workers: 2..8`).

A group of workers has one number throughout. When a worker is lost, or when there is room for more, another group of as
many as fit goes on from the last checkpoint; before a larger one takes over, a checkpoint is asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..config.schema import ScaleConfig
from ..errors import Stopped
from ..run.asking import CHECKPOINT, STOP, answer, ask, asked, forget
from ..run.folder import RunFolder
from .ray_train import Lost, run_on_ray
from .session import RaySession, resources
from .worker import Assignment

SETTLED = 3.0
"""Seconds in which no further room has appeared: nodes come and go together."""
TOLD_EVERY = 30.0
"""Seconds between two lines about room that is waited for."""


def run_elastic(
    session: RaySession,
    assignment: Assignment,
    scale: ScaleConfig,
    cpus: float,
    use_gpu: bool,
    say: Callable[[str], None],
) -> None:
    """As `run_on_ray`, with as many workers as there is room for, and `scale.max_failures` losses in all."""
    folder, each = assignment.job.folder, resources(cpus, use_gpu)
    workers, losses, ended = 0, 0, False
    while not ended:
        before, workers = workers, _find_room(each, scale, assignment, say)
        if workers != before:
            say(f"  {'going on' if before else 'training'} with {workers} worker{'s' if workers > 1 else ''}")
        # A new token: who is cut off from the cluster, but not from the storage, must not write any more.
        assignment = replace(assignment, token=RunFolder(folder).new_token())
        try:
            with _reserved(each, scale.most - workers) as more:
                grown = _Growth(folder, more)
                ended = run_on_ray(session, assignment, workers, cpus, use_gpu, 0, grown)
        except Lost:
            losses += 1
            if losses > scale.max_failures:
                raise
            say(f"  workers were lost ({losses} of at most {scale.max_failures} times)")
        finally:
            forget(folder, CHECKPOINT)


class _Room:
    """Reservations of one worker each. Ray grants them as there is room, and its autoscaler sees what is wanted."""

    def __init__(self, each: dict[str, float], number: int):
        from ray.util.placement_group import placement_group

        self.groups = [placement_group([each]) for _ in range(number)]
        self.last, self.since = 0, time.monotonic()

    def granted(self) -> int:
        from ray.util.placement_group import placement_group_table

        now = sum(placement_group_table(group).get("state") == "CREATED" for group in self.groups)
        if now != self.last:
            self.last, self.since = now, time.monotonic()
        return now

    def settled(self) -> int:
        """How many are granted, when it is all, or when their number has stayed for a while; else 0."""
        now = self.granted()
        return now if now == len(self.groups) or time.monotonic() - self.since > SETTLED else 0


@contextlib.contextmanager
def _reserved(each: dict[str, float], number: int) -> Iterator[_Room]:
    from ray.util.placement_group import remove_placement_group

    room = _Room(each, number)
    try:
        yield room
    finally:
        for group in room.groups:
            remove_placement_group(group)


def _find_room(each: dict[str, float], scale: ScaleConfig, assignment: Assignment, say: Callable[[str], None]) -> int:
    """How many workers fit; it waits for the fewest, and says so. Raises Stopped when the run is asked to stop."""
    folder = assignment.job.folder
    with _reserved(each, scale.most) as room:
        told = time.monotonic() - TOLD_EVERY + 2 * SETTLED
        while room.settled() < scale.fewest:
            if asked((folder, *assignment.asked_in)) == STOP:
                answer(folder, STOP)
                raise Stopped("stopped while it waited for workers")
            if time.monotonic() - told > TOLD_EVERY:
                told = time.monotonic()
                wanted = " ".join(f"{value:g} {key}" for key, value in each.items())
                say(f"  waiting for {scale.fewest} workers with {wanted} each: there is room for {room.last}")
            time.sleep(0.2)
        return room.last


class _Growth:
    """Whether a larger group may take over: there is room for more workers, and their checkpoint is written."""

    def __init__(self, folder: Path, more: _Room):
        self.folder, self.more, self.asked, self.looked = folder, more, False, time.monotonic()

    def __call__(self) -> bool:
        if not self.more.groups or time.monotonic() - self.looked < 1:
            return False
        if not self.asked:
            self.looked = time.monotonic()
            self.asked = self.more.settled() > 0
            if self.asked:
                ask(self.folder, CHECKPOINT)
            return False
        return not asked([self.folder])
