"""Tells of a worker that stands still, and where: it does so itself, or, if it cannot, the others who wait for it."""

from __future__ import annotations

import contextlib
import faulthandler
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from ..blame import is_machinery, tail
from ..errors import RunFailed
from .worker import failures, final_failure, write_failure

AT_START = 600.0
"""Seconds that building the networks and the first step may take, however few are allowed later."""
GRACE = 10.0
"""Seconds that a worker who only waits gives the one that it waits for to tell what is wrong."""


class Watchdog:
    """While it is open, its thread looks after the one that opened it, which calls `alive` now and then.

    After `patience` seconds without, the stacks of all threads are in worker-RANK.stack of the run folder and the
    failure is written down; the driver then ends the group. A stack that ends in code of kdray or torch belongs to a
    worker that waits for others, or for its device."""

    def __init__(self, folder: Path, rank: int, workers: int, patience: float):
        self.folder, self.rank, self.workers, self.patience = folder, rank, workers, patience
        self.begun, self.at = False, time.monotonic()
        self.thread, self.closed = threading.get_ident(), threading.Event()
        self.file = folder / f"worker-{rank}.stack"

    def alive(self) -> None:
        self.begun, self.at = True, time.monotonic()

    def __enter__(self) -> Watchdog:
        self.stacks = open(self.file, "w")
        self.watch = threading.Thread(target=self._run, name="kdray-watchdog", daemon=True)
        self.watch.start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self.watch.join()
        faulthandler.cancel_dump_traceback_later()
        self.stacks.close()
        with contextlib.suppress(OSError):
            if self.file.stat().st_size == 0:
                self.file.unlink()

    def _run(self) -> None:
        while not self.closed.wait(min(1.0, self.patience / 4)):
            patience = self.patience if self.begun else max(self.patience, AT_START)
            # Should the other thread never let go of the interpreter, this one is not heard of again, but its alarm is.
            faulthandler.dump_traceback_later(patience + GRACE / 2, file=self.stacks)
            if time.monotonic() - self.at > patience:
                self._tell()
                return

    def _tell(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.dump_traceback(self.stacks, all_threads=True)
        stack = traceback.extract_stack(sys._current_frames()[self.thread])
        place = tail("".join(traceback.format_list(stack)))
        since = f"no step, nor anything else, was finished there for {self.patience:g} s (scale.hang_after)"
        stacks = f"the stacks of all threads are in {self.folder}/worker-*.stack; `kdray resume` goes on"
        if not is_machinery(stack[-1].filename):
            who = f"worker {self.rank} on {socket.gethostname()}"
            self._write(RunFailed(f"{who} hangs: {since}. It is at\n{place}\n{stacks}"))
            return
        self._write(TimeoutError(f"it waits at\n{place}"))  # no cause, but an echo of one
        if self.closed.wait(GRACE) or final_failure(self.folder):
            return
        silent = sorted(set(range(self.workers)) - {entry["rank"] for entry in failures(self.folder)})
        if silent:
            what = f"worker {', '.join(map(str, silent))} gives no sign of life, and worker {self.rank} waits"
        elif self.workers > 1:
            what = "the workers wait for one another: something is gathered on one of them and not on the others"
        else:
            what = "the worker waits for its device or for a file"
        self._write(RunFailed(f"{what}: {since}. Worker {self.rank} is at\n{place}\n{stacks}"))

    def _write(self, error: Exception) -> None:
        if not final_failure(self.folder):
            write_failure(self.folder, self.rank, error)
