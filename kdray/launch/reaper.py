"""Ends what is left of the Ray cluster of a driver that was killed. Two of Ray's own agents do not always notice.

It runs beside the driver as a process of its own, so it imports nothing that takes time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "KDRAY_SESSION"
"""In the environment of all that a session starts: which session it is."""
GRACE = 10.0
"""Seconds in which the cluster may end by itself."""
DONE = b"done"


@contextlib.contextmanager
def reaping() -> Iterator[None]:
    """What is started while it is open is ended when this process is killed meanwhile. Only where there is /proc."""
    if not Path("/proc/self/environ").exists():
        yield
        return
    before, token = os.environ.get(MARK), uuid.uuid4().hex
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    os.environ[MARK] = token
    try:
        yield
    finally:
        os.environ.pop(MARK)
        if before is not None:
            os.environ[MARK] = before
        with contextlib.suppress(BrokenPipeError):
            reaper.communicate(DONE)


def marked(token: str) -> list[int]:
    """The processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if f"{MARK}={token}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def main() -> None:
    if sys.stdin.buffer.read() == DONE:  # else its driver is gone: the pipe has ended
        return
    end = time.monotonic() + GRACE
    while (left := marked(sys.argv[1])) and time.monotonic() < end:
        time.sleep(0.5)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
