"""What the terminal shows of a run, on standard error: lines, and below them a live one where there is a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from math import ceil

from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..config.schema import Config
from .folder import RunFolder

LINES = 30
"""A run of so many epochs has a line for each; a longer one about as many in all, and one every `SECONDS`."""
SECONDS = 30.0


class Console:
    def __init__(self):
        self.rich = Rich(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.rich.print(text, markup=False)

    @contextlib.contextmanager
    def training(self, run: RunFolder, config: Config) -> Iterator[Screen]:
        resumed = (run.path / "checkpoints").is_dir()
        self.say(f"{'resuming' if resumed else 'run'} {run.path}")
        screen = Screen(self, config)
        try:
            yield screen
        finally:
            screen.close()

    @contextlib.contextmanager
    def counting(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Progress of something that is counted, with its rate and the time left. Call what it gives with each number
        that is done."""
        count = Count(self, what, total, done)
        try:
            yield count.add
        finally:
            count.close()


def _times() -> list:
    """For a bar: what has gone by, and what is left."""
    return [TimeElapsedColumn(), TextColumn("·"), TimeRemainingColumn(), TextColumn("left")]


class Count:
    """A live bar where there is a terminal, else a line now and then."""

    def __init__(self, console: Console, what: str, total: int, done: int):
        self.console, self.total, self.done, self.first = console, total, done, done
        self.began = self.told_at = time.monotonic()
        self.bar = None
        if console.rich.is_terminal:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            ]
            self.bar = Progress(*columns, *_times(), console=console.rich, transient=True)
            self.task = self.bar.add_task(what, total=total, completed=done, rate="")
            self.bar.start()

    def add(self, number: int) -> None:
        self.done += number
        now = time.monotonic()
        rate = (self.done - self.first) / max(now - self.began, 1e-9)
        if self.bar:
            self.bar.update(self.task, completed=self.done, rate=f"{rate:,.0f}/s")
        elif self.done == self.total or now - self.told_at > SECONDS:
            self.told_at = now
            left = f", {duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
            self.console.say(f"  {self.done:,}/{self.total:,}  {rate:,.0f}/s{left}")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def duration(seconds: float) -> str:
    """`2 h 5 min`, `3 min 20 s`, `12 s`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m} min" if hours else f"{m} min {s} s" if m else f"{s} s"


class Screen:
    """Receives the rows and the progress of one run."""

    def __init__(self, console: Console, config: Config):
        self.console, self.epochs = console, config.schedule.epochs
        self.told_at = time.monotonic()
        self.bar = None
        if console.rich.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("epochs"),
                *_times(),
                console=console.rich,
                transient=True,
            )
            self.task = self.bar.add_task("starting", total=self.epochs)
            self.bar.start()

    def progress(self, now: dict) -> None:
        if self.bar is None:
            return
        if now["phase"] == "training":
            done = now["epoch"] + now["batch"] / now["batches"]
            self.bar.update(self.task, completed=round(done, 2), total=now["epochs"], description=standing(now))
        else:
            self.bar.update(self.task, description=standing(now))

    def _is_due(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch gets a line of its own."""
        now = time.monotonic()
        if epoch in (1, epochs) or epoch % ceil(epochs / LINES) == 0 or now - self.told_at > SECONDS:
            self.told_at = now
            return True
        return False

    def row(self, row: dict) -> None:
        if row["kind"] == "teacher":
            which = "" if row["name"] == "teacher" else f" {row['name']}"
            stored = f"; its answers are stored in {row['cache']}" if "cache" in row else ""
            self.console.say(f"  teacher{which}: {row['top1']:.2%} on the test set{stored}")
        elif row["kind"] == "recording":
            self.console.say(recording_line(row))
        elif row["kind"] == "skipped":
            lost = " and ".join(row["terms"])
            self.console.say(f"warning: the batch of step {row['step'] - 1} is left out: {lost} is no finite number")
        elif row["kind"] == "damaged":
            self.console.say(f"warning: {row['message']}")
        elif row["kind"] == "stage" and self._is_due(row["epoch"], row["epochs"]):
            self.console.say(stage_line(row))
        elif row["kind"] == "epoch" and self._is_due(row["epoch"], self.epochs):
            self.console.say(epoch_line(row, self.epochs))

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def standing(now: dict | None) -> str:
    """Where a run stands, by its progress.json: `epoch 3, batch 12/45`, `evaluating`; "" where that says nothing."""
    match now:
        case {"phase": "training", "stage": stage, "epoch": int(epoch), "batch": batch, "batches": batches}:
            return f"{f'{stage}, ' if stage else ''}epoch {epoch + 1}, batch {batch}/{batches}"
        case {"phase": str(phase)}:
            return phase
    return ""


def recording_line(row: dict) -> str:
    """`  steps are recorded as a CUDA graph, of compiled networks`"""
    if row["obstacle"]:
        return f"  steps are not recorded as a CUDA graph: {row['obstacle']}"
    return f"  steps are recorded as a CUDA graph{', of compiled networks' if row['compiled'] else ''}"


def stage_line(row: dict) -> str:
    """`  stage ft/paraphraser 12/30  loss 0.123  1,234/s`"""
    terms = ", ".join(_short(value) for value in row["terms"].values())
    return (
        f"  stage {row['stage']} {row['epoch']}/{row['epochs']}{f'  loss {terms}' if terms else ''}  "
        f"{row['pictures_per_second']:,.0f}/s"
    )


def epoch_line(row: dict, epochs: int) -> str:
    """`  12/30  loss 1.234 (ce 0.512, kd 0.722)  test 87.12%  best 88.00% at 9  1,234/s`

    The terms are unweighted; the last number is pictures a second.
    """
    terms = ", ".join(f"{name} {_short(value)}" for name, value in row["terms"].items())
    results = "  ".join(
        f"{head} {row[split]['top1']:.2%}" for head, split in (("val", "validation"), ("test", "test")) if split in row
    )
    best = row["best"]
    return (
        f"  {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {_short(row['loss'])} ({terms})  {results}  "
        f"best {best['top1']:.2%} at {best['epoch']}  {row['pictures_per_second']:,.0f}/s"
    )


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.2e}"
