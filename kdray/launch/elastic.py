"""A run whose number of workers follows the cluster (`scale.num_workers: 2..8`).

A group of workers has one number throughout. When a worker is lost, or when there is room for more, another group of as
many as fit goes on from the last checkpoint; before a larger one takes over, a checkpoint is asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
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
            with _Growth(folder, workers, each, scale.most) as grown:
                ended = run_on_ray(session, assignment, workers, cpus, use_gpu, 0, say, grown)
        except Lost:
            losses += 1
            if losses > scale.max_failures:
                raise
            say(f"  workers were lost ({losses} of at most {scale.max_failures} times)")


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

    def close(self) -> None:
        from ray.util.placement_group import remove_placement_group

        for group in self.groups:
            remove_placement_group(group)


def _find_room(each: dict[str, float], scale: ScaleConfig, assignment: Assignment, say: Callable[[str], None]) -> int:
    """How many workers fit; it waits for the fewest, and says so. Raises Stopped when the run is asked to stop."""
    folder = assignment.job.folder
    with contextlib.closing(_Room(each, scale.most)) as room:
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

    def __init__(self, folder: Path, workers: int, each: dict[str, float], most: int):
        import ray

        self.folder, self.workers, self.each, self.more = folder, workers, each, most - workers
        if ray.util.client.ray.is_connected():
            self.more = 0  # over ray:// a group that trains cannot be ended
        self.room: _Room | None = None
        self.asked, self.looked = False, time.monotonic()
        for file in folder.glob("worker-*.json"):
            file.unlink()

    def __enter__(self) -> _Growth:
        return self

    def __exit__(self, *_) -> None:
        forget(self.folder, CHECKPOINT)
        if self.room:
            self.room.close()

    def __call__(self) -> bool:
        if not self.more or time.monotonic() - self.looked < 1:
            return False
        self.looked = time.monotonic()
        if self.room is None:
            if self._has_begun():  # before, a reservation would take the place of this group
                self.room = _Room(self.each, self.more)
        elif not self.asked:
            self.asked = self.room.settled() > 0
            if self.asked:
                ask(self.folder, CHECKPOINT)
        else:
            return not asked([self.folder])
        return False

    def _has_begun(self) -> bool:
        return all((self.folder / f"worker-{rank}.json").exists() for rank in range(self.workers))
