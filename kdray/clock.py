"""Where the time of a process goes. At each moment one part of its work is under way, so the parts add up to the whole.

Off, which it is unless a command asks for it, it costs a look at a variable. It reads the host's clock and nothing
else: what a GPU does meanwhile counts where the host next waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Part(StrEnum):
    """In the order in which they are shown."""

    STARTING = "starting kdray"
    RAY = "Ray's start and end"
    DATA = "loading data"
    NETWORKS = "building networks"
    WORKERS = "workers' start and end"
    FIRST = "first step"
    STEPS = "training steps"
    PICTURES = "waiting for pictures"
    ANSWERS = "waiting for answers"
    EVALUATION = "evaluation"
    CHECKPOINTS = "checkpoints"
    TRACING = "tracing"
    REST = "the rest"


class Clock:
    """seconds: by run, "" for what belongs to none, and by part of the work."""

    def __init__(self, began: float | None = None):
        """began: `time.monotonic()` of a moment in the past; what came since was starting."""
        self.seconds: dict[str, dict[Part, float]] = {}
        self.run, self.part, self.since = "", Part.REST, time.monotonic()
        if began is not None:
            self.seconds[""] = {Part.STARTING: self.since - began}

    def switch(self, run: str, part: Part) -> tuple[str, Part]:
        """What is under way from now on. Returns what was until now."""
        before, now = (self.run, self.part), time.monotonic()
        self._add(self.part, now - self.since)
        self.run, self.part, self.since = run, part, now
        return before

    def _add(self, part: Part, seconds: float) -> None:
        of_run = self.seconds.setdefault(self.run, {})
        of_run[part] = of_run.get(part, 0.0) + seconds

    def told(self, seconds: dict[Part, float]) -> None:
        """What another process did while this one waited for it, in the part that is under way: that keeps the
        remainder."""
        for part, some in seconds.items():
            self._add(part, some)
            self._add(self.part, -some)


_clock: Clock | None = None


@contextmanager
def running(began: float | None = None) -> Iterator[Clock]:
    """The clock of this process is on."""
    global _clock
    _clock = clock = Clock(began)
    try:
        yield clock
    finally:
        clock.switch("", Part.REST)
        _clock = None


def timed(part: Part) -> AbstractContextManager:
    """This part of the work is under way; then again what was before. Also a decorator."""
    return _during(None, part)


def of_run(name: str) -> AbstractContextManager:
    """What is done is done for the run of this name."""
    return _during(name, Part.REST)


@contextmanager
def _during(run: str | None, part: Part) -> Iterator[None]:
    if _clock is None:
        yield
        return
    before = _clock.switch(_clock.run if run is None else run, part)
    try:
        yield
    finally:
        _clock.switch(*before)


def awaited(part: Part, items: Iterable[T]) -> Iterator[T]:
    """`items`, and the time that each takes to come is this part's."""
    return iter(items) if _clock is None else _awaited(part, iter(items))


def _awaited(part, items):
    while True:
        with timed(part):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def so_far() -> dict[Part, float]:
    """Seconds by part of the run that is under way; nothing where the clock is off."""
    if _clock is None:
        return {}
    _clock.switch(_clock.run, _clock.part)
    return dict(_clock.seconds[_clock.run])


def tell(seconds: dict[Part, float]) -> None:
    """See `Clock.told`."""
    if _clock is not None:
        _clock.told(seconds)


def process_began() -> float:
    """`time.monotonic()` when this process began; now, where the system does not say it."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        age = 0.0
    return time.monotonic() - age
