"""Ends what is left of the Ray cluster of a driver that was killed: two of Ray's own agents do not always notice. And
removes the session's folder, which Ray leaves behind, unless the driver has failed: its logs may say why.

It runs beside the driver as a process of its own, so it imports nothing that takes time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "KDRAY_SESSION"
"""In the environment of all that a session starts: which session it is."""
GRACE = 10.0
"""Seconds in which the cluster may end by itself."""
DONE, FAILED = b"done", b"failed"


@contextlib.contextmanager
def reaping() -> Iterator[Callable[[str], None]]:
    """What is started while it is open is ended when this process is killed meanwhile. Only where there is /proc. Tell
    it the folder of the Ray session when it is known: the agents write their titles over their environment, and it is
    removed at the end, or kept after an exception other than KeyboardInterrupt."""
    if not Path("/proc/self/environ").exists():
        yield lambda folder: None
        return

    def tell(folder: str) -> None:
        reaper.stdin.write(f"{folder}\n".encode())
        reaper.stdin.flush()

    before, token = os.environ.get(MARK), uuid.uuid4().hex
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    os.environ[MARK], how = token, DONE
    try:
        yield tell
    except Exception:
        how = FAILED
        raise
    finally:
        os.environ.pop(MARK)
        if before is not None:
            os.environ[MARK] = before
        with contextlib.suppress(BrokenPipeError):
            reaper.communicate(how)


def of_session(token: str, session: str) -> list[int]:
    """Its processes: those with its mark, and those of Ray's that have a file open in its folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            marked = f"{MARK}={token}".encode() in (process / "environ").read_bytes().split(b"\0")
            of_ray = (process / "cmdline").read_bytes().startswith(b"ray::")
            if marked or (session and of_ray and _writes_in(session, process)):
                found.append(int(process.name))
    return found


def _writes_in(folder: str, process: Path) -> bool:
    return any(os.readlink(file).startswith(f"{folder}/") for file in (process / "fd").iterdir())


def main() -> None:
    folder, _, how = sys.stdin.buffer.read().rpartition(b"\n")
    session = folder.decode()
    if how not in (DONE, FAILED):  # its driver is gone: the pipe has ended
        end = time.monotonic() + GRACE
        while (left := of_session(sys.argv[1], session)) and time.monotonic() < end:
            time.sleep(0.5)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    if session and how != FAILED:
        _remove(session)


def _remove(folder: str) -> None:
    for _ in range(10):  # who ends just now may still write there
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
