"""The driver's eye on a run: new rows go to trackers, progress to the terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from .folder import read_json
from .metrics import read_rows


class Watch:
    """While it is open, calls `on_row(row)` for each new row of metrics.jsonl and `on_progress(dict)` several times a second.

    A rewound file (after a restart) is read again from where it was cut: rows that were told already are not told twice.
    """

    def __init__(self, folder: Path, on_row: Callable[[dict], None], on_progress: Callable[[dict], None], every: float = 0.2):
        self.folder, self.on_row, self.on_progress, self.every = folder, on_row, on_progress, every
        self.told = len(read_rows(folder / "metrics.jsonl"))
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

    def _look(self) -> None:
        rows = read_rows(self.folder / "metrics.jsonl")
        self.told = min(self.told, len(rows))
        for row in rows[self.told :]:
            self.on_row(row)
        self.told = len(rows)
        now = read_json(self.folder / "progress.json")
        if now:
            self.on_progress(now)
