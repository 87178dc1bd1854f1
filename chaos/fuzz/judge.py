"""What a reader may do with an input: answer, or raise a KdrayError that names the file; in time, in little memory, and
without running anything that stands in it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from kdray.errors import KdrayError

MARKER = "code-was-run"
"""What every planted piece of code makes in the current folder."""
CPU_SECONDS, PATIENCE = 10, 60
"""Seconds of work that one input may cost, and of waiting, on a machine that may be busy."""
MEMORY = 512 << 20
"""Bytes that one input may add to the peak."""


class Fault(AssertionError):
    """A reader did what it must not."""


@dataclass(frozen=True)
class Target:
    """One kind of file. read(value, folder) writes the input into the folder and reads it; it returns the words of
    which a refusal must hold one."""

    name: str
    inputs: SearchStrategy
    read: Callable[[Any, Path], None]
    named: tuple[str, ...]
    share: float = 1.0
    """Of the inputs, beside the other targets: less where reading takes long."""


def judge(target: Target, value: Any, folder: Path) -> bool:
    """Whether the reader accepted the input. Raises Fault for what it must not do. The current folder is `folder`."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (Linux)
    before = _peak()
    began = time.process_time()
    try:
        with _deadline():
            target.read(value, folder)
        accepted, message = True, ""
    except KdrayError as error:
        accepted, message = False, str(error)
    except Fault:
        raise
    except BaseException as error:
        raise Fault(f"{type(error).__name__}: {error}") from error
    if (folder / MARKER).exists():
        (folder / MARKER).rmdir()
        raise Fault("code of the file was run")
    if (cost := time.process_time() - began) > CPU_SECONDS:
        raise Fault(f"{cost:.0f} s of work for one small file")
    if _peak() - before > MEMORY:
        raise Fault(f"{(_peak() - before) >> 20} MiB of memory for one small file")
    if not accepted and not any(word in message for word in target.named):
        raise Fault(f"the message names no file: {message}")
    return accepted


def fuzz(target: Target, examples: int, folder: Path, seen: Callable[[bool], None] = lambda accepted: None) -> None:
    """Judge so many inputs, and shrink the first that fails."""

    @settings(
        max_examples=examples,
        deadline=None,  # ours is of the reader alone
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(target.inputs)
    def run(value):
        seen(judge(target, value, folder))

    run()


def _peak() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


@contextmanager
def _deadline():
    def late(*_):
        raise Fault(f"no answer after {PATIENCE} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1)  # again and again: a callback may swallow the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
