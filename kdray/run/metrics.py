"""metrics.jsonl, written by the first worker; and progress.json, which says where it is just now.

The files are all that passes between the workers and whoever watches, so that a run is watched alike in this process,
on a cluster and later.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ..errors import RunFailed
from .asking import answer, asked
from .folder import write_json


class FileLog:
    """The engine's `Log`, in a run folder. token: the mark of the start or resumption that this worker belongs to.
    asked_in: folders of the runs that wait for this one, which may be asked in its stead."""

    def __init__(self, folder: Path, token: str, asked_in: tuple[Path, ...] = (), progress_every: float = 0.3):
        self.folder, self.asked_in = folder, (folder, *asked_in)
        self.file, self.now = folder / "metrics.jsonl", folder / "progress.json"
        self.mark, self.token = folder / ".token", token
        self.progress_every, self._last = progress_every, ("", 0.0)

    def guard(self) -> None:
        """Raises RunFailed when somebody else has resumed the run: what outlives its driver must not write."""
        if self.mark.read_text() != self.token:
            raise RunFailed("this run was resumed by another process; this one stops")

    def asked(self) -> str:
        return asked(self.asked_in)

    def answer(self, what: str) -> None:
        answer(self.folder, what)

    def row(self, row: dict) -> None:
        self.guard()
        with open(self.file, "a") as handle:
            handle.write(json.dumps(row) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what happened after `step`: it will happen again. A row of kind "resumed" marks the place."""
        if not self.file.exists():
            return
        found, damaged = _read(self.file)
        rows = [row for row in found if row["step"] <= step]
        rows.append({"kind": "resumed", "step": max(step, 0)})
        if damaged:
            which = f"line{'s' if len(damaged) > 1 else ''} {', '.join(map(str, damaged[:5]))}"
            more = f" and {len(damaged) - 5:,} more" if len(damaged) > 5 else ""
            told = f"{self.file}: {which}{more} cannot be read, and {'are' if len(damaged) > 1 else 'is'} left out"
            rows.append({"kind": "damaged", "step": max(step, 0), "message": told})
        saved = self.file.parent / "checkpoints" / f"step-{step:09d}"
        if saved.is_dir() and not any(row["kind"] == "checkpoint" and row["step"] == step for row in rows):
            rows.append({"step": step, "kind": "checkpoint", "path": saved.name})  # died before it could tell
        part = self.file.with_name(".writing-metrics.jsonl")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(part, self.file)

    def progress(self, **now) -> None:
        phase, at = self._last
        if now["phase"] != phase or time.monotonic() - at >= self.progress_every:
            self._last = now["phase"], time.monotonic()
            write_json(self.now, now)


def read_rows(file: Path) -> list[dict]:
    """All whole rows."""
    return _read(file)[0]


def _read(file: Path) -> tuple[list[dict], list[int]]:
    """All whole rows, and the numbers of the lines that are damaged. A last line without its end is not: it is still
    being written, or was when its process was killed."""
    if not file.exists():
        return [], []
    rows, damaged = [], []
    *lines, last = file.read_text(errors="replace").split("\n")
    for number, line in enumerate([*lines, last], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and row.keys() >= {"kind", "step"}:
            rows.append(row)
        elif number <= len(lines):
            damaged.append(number)
    return rows, damaged
