"""Every operation on a file of the project is a point where something may go wrong.

Python tells an audit hook of each before it happens; what the hook raises, the operation raises. (What torch and
safetensors write from C is seen only by the files' later renaming.)
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.copyfile")


def watch(folder: Path, at: int = 0, do: str = "", within: str = "") -> None:
    """From now on this process counts the points below the folder in points.txt, and at point `at` (from 1) does what
    it is told: kill, term, or full, a disk without space from there on. within: only paths with this word."""
    here, count, full = f"{folder}{os.sep}", 0, False
    tally = os.open(folder.with_name(folder.name + ".points"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, args: tuple) -> None:
        nonlocal count, full
        if event not in EVENTS or not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(args[0]))
        if not path.startswith(here) or within not in path or path.endswith((".pyc", "order.json")):
            return
        writes = event in ("os.mkdir", "shutil.copyfile") or (event == "open" and _writes(args))
        if event == "open" and not writes:
            return
        count += 1
        os.pwrite(tally, b"%d\n" % count, 0)
        if count == at and do in ("kill", "term"):
            os.kill(os.getpid(), signal.SIGKILL if do == "kill" else signal.SIGTERM)
        if do == "full" and count >= at and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(hook)


def _writes(args: tuple) -> bool:
    flags = args[2] if isinstance(args[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def counted(folder: Path) -> int:
    return int(folder.with_name(folder.name + ".points").read_text() or 0)
