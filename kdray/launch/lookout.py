"""What becomes of a cluster's nodes while a group of workers trains on them: told, and not waited for without end."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import RunFailed
from .session import RaySession, room

EVERY = 2.0
"""Seconds between two looks."""
PATIENCE = 600.0
"""Seconds in which a node that is missing may be replaced."""


class Lookout:
    """workers: how many must fit, with the resources `each`."""

    def __init__(self, session: RaySession, workers: int, each: dict[str, float], say: Callable[[str], None]):
        self.session, self.workers, self.each, self.say = session, workers, each, say
        self.nodes = session.addresses()
        self.leaving: set[str] = set()
        self.looked = time.monotonic()
        self.short_since: float | None = None

    def look(self) -> bool:
        """Whether a node is about to be taken away that was not so at the last look. Raises RunFailed when the workers
        have not fitted for too long."""
        now = time.monotonic()
        if now - self.looked < EVERY:
            return False
        self.looked, before, self.nodes = now, self.nodes, self.session.addresses()
        for node in before.keys() - self.nodes.keys():
            self.say(f"the cluster has lost the node {before[node]}")
        for node in self.nodes.keys() - before.keys():
            self.say(f"the cluster has a new node, {self.nodes[node]}")
        fit = room(self.session.nodes(), self.each)
        if fit >= self.workers:
            self.short_since = None
        elif self.short_since is None:
            self.short_since = now
            self.say(
                f"there is room for {fit} of {self.workers} workers: waiting for nodes, {PATIENCE / 60:g} min at most"
            )
        elif now - self.short_since > PATIENCE:
            raise RunFailed(
                f"the cluster has had room for {fit} of {self.workers} workers for {PATIENCE / 60:g} minutes, since it "
                "lost a node. `kdray resume` goes on from the last checkpoint, also with another --num-workers."
            )
        return self._some_leave()

    def _some_leave(self) -> bool:
        """Ray drains a node of which it knows that it will be taken away, as a spot instance is."""
        before, self.leaving = self.leaving, self.session.draining() & self.nodes.keys()
        for node in self.leaving - before:
            self.say(f"the node {self.nodes[node]} is about to be taken away: a checkpoint is written before")
        return bool(self.leaving - before)
