"""What is asked of a run from outside, by a file in its folder: whoever sees the folder may ask, and the first worker
looks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STOP, CHECKPOINT = "stop", "checkpoint"
_DONE = "done\n"


def ask(folder: Path, what: str) -> None:
    """what: STOP, with a checkpoint; or CHECKPOINT, and then go on."""
    (folder / f".{what}").touch()


def asked(folders: Iterable[Path]) -> str:
    """What is asked of a run whose requests may be in any of these; "" where it is nothing."""
    folders = list(folders)
    return next((what for what in (STOP, CHECKPOINT) for f in folders if (f / f".{what}").exists()), "")


def answer(folder: Path, what: str) -> None:
    """The checkpoint is written."""
    if what == STOP:
        (folder / f".{STOP}").write_text(_DONE)
    else:
        forget(folder, what)


def has_stopped(folder: Path) -> bool:
    try:
        return (folder / f".{STOP}").read_text() == _DONE
    except OSError:
        return False


def forget(folder: Path, *what: str) -> None:
    for each in what or (STOP, CHECKPOINT):
        (folder / f".{each}").unlink(missing_ok=True)
