"""The trials of a search as their folders tell of them, while it runs and after."""

from __future__ import annotations

from pathlib import Path

from .console import Console
from .folder import RunFolder, read_json
from .search import Trial, ranked, shown, trial_line
from .summary import parameters


def numbers(row: dict, weights: Path) -> dict[str, float]:
    """The metrics of an epoch, from its row in metrics.jsonl. weights: any file of the student's."""
    found = {f"validation/{name}": row["validation"][name] for name in ("top1", "top5", "loss")}
    return {**found, "loss": row["loss"], "parameters": parameters(weights)}


def read_trials(folder: Path) -> list[Trial]:
    """Those of a search, in the order of their numbers. A trial's metrics are those of its last epoch."""
    return [read_trial(file.parent) for file in sorted((folder / "trials").glob("*/values.json"))]


def read_trial(path: Path) -> Trial:
    run, rows = RunFolder(path), RunFolder(path).rows("epoch")
    status = run.status
    history = [{"epoch": row["epoch"], **numbers(row, path / "best.safetensors")} for row in rows]
    return Trial(
        number=int(run.name),
        state=status["state"] if status["state"] in ("finished", "stopped", "failed") else "unfinished",
        epochs=rows[-1]["epoch"] if rows else 0,
        values=read_json(path / "values.json")["values"],
        metrics={k: v for k, v in history[-1].items() if k != "epoch"} if rows else {},
        seconds=rows[-1]["seconds"] if rows else 0.0,
        error=status.get("error"),
        path=str(path),
        history=history,
    )


def winner(trials: list[Trial], metric: str) -> Trial | None:
    """The best of those that got to their last epoch; None where no trial has the metric."""
    ended = [trial for trial in trials if trial.state == "finished"] or trials
    best = ranked(ended, metric)[:1]
    return best[0] if best and metric in best[0].metrics else None


class Screen:
    """A line for each trial that ends, and where there is a terminal a live one that counts."""

    def __init__(self, console: Console, folder: Path, total: int, metrics: list[str]):
        self.console, self.folder, self.total, self.metrics = console, folder, total, metrics
        self.running: set[str] = set()
        self.ended = {f"{t.number:03}": t for t in read_trials(folder) if t.state != "unfinished"}
        self.live = console.rich.status("") if console.rich.is_terminal else None
        if self.live:
            self.live.start()
        self._show()

    def start(self, name: str) -> None:
        self.running.add(name)
        self._show()

    def end(self, name: str) -> None:
        self.running.discard(name)
        if name not in self.ended:
            self.ended[name] = trial = read_trial(self.folder / "trials" / name)
            self.console.say(trial_line(trial, len(self.ended), self.total, self.metrics))
        self._show()

    def close(self) -> None:
        if self.live:
            self.live.stop()

    def _show(self) -> None:
        if self.live:
            best = winner(list(self.ended.values()), self.metrics[0])
            leads = (
                f", best {shown(self.metrics[0], best.metrics[self.metrics[0]])} (trial {best.number})" if best else ""
            )
            self.live.update(f"{len(self.ended)}/{self.total} trials ended, {len(self.running)} running{leads}")
