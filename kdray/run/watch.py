"""The driver's eye on a run: new rows go to trackers, progress to the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from .folder import read_json


class Watch:
    """While it is open, calls `on_row(row)` for each new row of metrics.jsonl and `on_progress(dict)` every `every` s.

    Rows that are there when it opens are not told. After a restart, what is done again is told again.
    """

    def __init__(
        self, folder: Path, on_row: Callable[[dict], None], on_progress: Callable[[dict], None], every: float = 0.2
    ):
        self.folder, self.on_row, self.on_progress, self.every = folder, on_row, on_progress, every
        self.file = folder / "metrics.jsonl"
        self.inode, self.place = self._size()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="kdray-watch", daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self._look()

    def _run(self) -> None:
        while not self.stop.wait(self.every):
            self._look()

    def _size(self) -> tuple[int, int]:
        try:
            stat = self.file.stat()
        except OSError:
            return 0, 0
        return stat.st_ino, stat.st_size

    def _after_mark(self) -> int:
        """The place behind the last row of kind "resumed"; 0 where there is none."""
        place, found = 0, 0
        for line in self.file.read_bytes().splitlines(keepends=True):
            place += len(line)
            if line.endswith(b"\n") and json.loads(line)["kind"] == "resumed":
                found = place
        return found

    def _look(self) -> None:
        for line in self._new_lines():
            self.on_row(json.loads(line))
        now = read_json(self.folder / "progress.json")
        if now:
            self.on_progress(now)

    def _new_lines(self) -> list[bytes]:
        """None where the file is out of reach just now; a later look finds them."""
        inode, size = self._size()
        try:
            if inode and inode != self.inode:  # rewound: the file was written anew, and what is new follows the mark
                self.place, self.inode = self._after_mark(), inode
            if size <= self.place:
                return []
            with open(self.file, "rb") as handle:
                handle.seek(self.place)
                new = handle.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]  # a last line may still be on its way
        self.place += len(whole)
        return whole.splitlines()
