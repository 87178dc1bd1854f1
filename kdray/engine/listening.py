"""How all workers hear at one step what is asked of the run."""

from __future__ import annotations

import time
from typing import Protocol

from .context import Context

EVERY = 0.3
"""Seconds between two looks of the first worker, about."""


class Asked(Protocol):
    def asked(self) -> str:
        """ "", "checkpoint" or "stop"."""


ASKS = ("", "checkpoint", "stop")


class Listener:
    """The first worker looks, and tells the others what it saw and at which step it will look again; that follows from
    its own pace. So the workers talk a few times a second, by way of the hosts, and no device is waited for."""

    def __init__(self, context: Context, log: Asked, step: int):
        self.context, self.log = context, log
        self.step = self.next = step
        self.steps, self.looked = 1, time.monotonic()

    def hear(self, step: int) -> str:
        """What is asked at this step, the same for every worker. Each calls it at every step."""
        if step < self.next:
            return ""
        asked = 0
        if self.context.is_first:
            now = time.monotonic()
            a_step = max(now - self.looked, 1e-6) / max(step - self.step, 1)
            # At most twice as many as before: a GPU's queue swallows the first steps faster than they are done.
            self.steps = max(1, min(2 * self.steps, int(EVERY / a_step)))
            self.step, self.looked = step, now
            asked = ASKS.index(self.log.asked())
        asked, self.next = self.context.tell([asked, step + self.steps])
        return ASKS[asked]
