"""Checkpoints are written beside the training: what is saved is copied, and a thread of its own writes the copy.

Formats, checksums and the disk take many times as long as the copy, which is all that the training waits for.
"""

from __future__ import annotations

import copy
import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from torch import Tensor

from . import checkpoint
from .checkpoint import Counters


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on disk, whole, and the step that it is of."""

    path: Path
    step: int


class Writer:
    """Of the checkpoints in the run folder `run`, of which the newest `keep` stay. It writes one at a time, so there is
    never more than one copy."""

    def __init__(self, run: Path, keep: int):
        self.run, self.keep = run, keep
        self.thread: threading.Thread | None = None
        self.ended: SimpleQueue[Saved | BaseException] = SimpleQueue()

    def begin(self, counters: Counters, tensors: dict[str, dict[str, Tensor]], optimizer: dict) -> None:
        """Copy these and return: the caller may change them at once. What the one before came to must have been asked
        for with `written`."""
        assert self.thread is None, "one checkpoint at a time"
        what = copied((counters, tensors, optimizer))
        # A daemon: whoever wants to end the process at once does not wait for a disk.
        self.thread = threading.Thread(target=self._write, args=what, name="kdray-writer", daemon=True)
        self.thread.start()

    def _write(self, counters: Counters, tensors: dict[str, dict[str, Tensor]], optimizer: dict) -> None:
        try:
            path = checkpoint.save(self.run, counters, tensors, optimizer, self.keep)
            self.ended.put(Saved(path, counters.step))
        except BaseException as error:
            self.ended.put(error)

    def written(self, wait: bool = False) -> Saved | None:
        """The checkpoint that has come to disk since this was last called; None where there is none, or, without
        `wait`, not yet. Raises what stopped it, once: RunFailed, as of a full disk."""
        if self.thread is None or (self.ended.empty() and not wait):
            return None
        ended, self.thread = self.ended.get(), None
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def abandon(self) -> None:
        """End what is being written where it is, as Ctrl-C would if it were written here: nothing is left of it. Waits
        for the operation on a file that it is at, no longer."""
        thread, self.thread = self.thread, None
        if thread is not None and thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            thread.join()


def copied(state):
    """The same dicts, lists and numbers, with copies of the tensors in them, on the CPU, which nobody else writes."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return copy.deepcopy(state)
