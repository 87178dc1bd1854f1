"""What a finished run amounts to: summary.json, the table at the end, the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config.schema import Config
from ..errors import MismatchError
from .folder import RunFolder, write_json

if TYPE_CHECKING:
    from rich.table import Table


def summarise(
    run: RunFolder, config: Config, teacher_runs: dict[str, RunFolder | None], alone: RunFolder | None
) -> dict:
    """Write summary.json and MODEL_CARD.md, and return the former. teacher_runs: by teacher, the run that trained it,
    where it was one of ours. Raises MismatchError where files of the run lack what it needs."""
    from .card import model_card

    try:
        summary = _summary(run, config, teacher_runs, alone)
        card = model_card(run, config, summary)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise MismatchError(f"{run.path / 'metrics.jsonl'} lacks what the results are made of ({what})") from error
    write_json(run.path / "summary.json", summary)
    (run.path / "MODEL_CARD.md").write_text(card)
    return summary


def _summary(
    run: RunFolder, config: Config, teacher_runs: dict[str, RunFolder | None], alone: RunFolder | None
) -> dict:
    epochs = run.rows("epoch")
    if not epochs:
        raise MismatchError(f"{run.path / 'metrics.jsonl'} is damaged: it holds no epoch. The weights are in place")
    last = epochs[-1]
    teachers = {row["name"]: row for row in run.rows("teacher")}
    summary = {
        "name": run.name,
        "path": str(run.path.resolve()),
        "student": config.student.model,
        "parameters": parameters(run.path / "student.safetensors"),
        "last": _scores(last),
        "best": {**last["best"], "test_top1": last["best"].get("test", last["best"]["top1"])},
        "seconds": last["seconds"],
        "pictures_per_second": last["pictures_per_second"],
        "seed": config.seed,
        **({"skipped": last["skipped"]} if last.get("skipped") else {}),
    }
    found = {
        name: {
            "model": section.model,
            "run": teacher_runs[name].name if teacher_runs.get(name) else None,
            "parameters": teachers[name]["parameters"],
            **_scores(teachers[name]),
        }
        for name, section in config.all_teachers.items()
    }
    if "average" in teachers:
        found["average"] = {"model": f"average of {len(found)}", "parameters": None, **_scores(teachers["average"])}
    if config.teacher:
        summary["teacher"] = found["teacher"]
    elif found:
        summary["teachers"] = found
    if alone:
        summary["alone"] = {key: read_summary(alone)[key] for key in ("name", "last", "best", "parameters")}
    return summary


def read_summary(run: RunFolder) -> dict:
    """That of a finished run. Raises MismatchError when it is damaged."""
    found = run.summary
    if not found or not found.keys() >= {"name", "path", "student", "parameters", "last", "best"}:
        raise MismatchError(
            f"{run.path / 'summary.json'} is damaged or absent, though the run is finished. `kdray evaluate "
            f"{run.name}` measures its weights; metrics.jsonl holds every epoch's numbers"
        )
    return found


def _scores(row: dict) -> dict:
    test = row.get("test", row)
    scores = {name: test[name] for name in ("top1", "top5", "loss")}
    if "validation" in row:
        scores["validation_top1"] = row["validation"]["top1"]
    if "epoch" in row:
        scores["epoch"] = row["epoch"]
    return scores


def parameters(weights: Path) -> int:
    """From the header of the file: nothing is loaded. Raises MismatchError for a damaged one."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MismatchError(f"{weights} is damaged: {error}") from error
    buffers = ("running_mean", "running_var", "num_batches_tracked", "input_range")
    return sum(prod(shape) for name, shape in shapes.items() if not name.endswith(buffers))


def teachers_of(summary: dict) -> list[tuple[str, dict]]:
    """(heading, numbers) of each teacher."""
    one = [("teacher", summary["teacher"])] if "teacher" in summary else []
    return one + [(f"teacher {name}", numbers) for name, numbers in summary.get("teachers", {}).items()]


def table(summary: dict) -> Table:
    """Teacher, student alone, distilled student: accuracy on the test set at the last and at the best epoch."""
    from rich.table import Table

    found = Table(title=summary["name"], title_justify="left")
    found.add_column("")
    found.add_column("network", overflow="fold")
    for head in ("parameters", "last epoch", "best epoch"):
        found.add_column(head, justify="right")

    def add(what, network, parameters, last, best):
        shown = f"{best['test_top1']:.2%} ({best['epoch']})" if best else ""
        found.add_row(what, network, f"{parameters:,}" if parameters else "", f"{last['top1']:.2%}", shown)

    for what, teacher in teachers_of(summary):
        add(what, teacher["model"], teacher["parameters"], teacher, None)
    if "alone" in summary:
        alone = summary["alone"]
        add("student alone", summary["student"], alone["parameters"], alone["last"], alone["best"])
    what = "distilled student" if teachers_of(summary) else "student"
    add(what, summary["student"], summary["parameters"], summary["last"], summary["best"])
    found.caption = "accuracy on the test set; best by " + (
        "the validation set" if summary["best"]["split"] == "validation" else "the test set itself"
    )
    if "skipped" in summary:
        found.caption += f"; {summary['skipped']:,} batches were left out, their losses no finite numbers"
    found.caption_justify = "left"
    return found


def seeds_table(summaries: list[dict]) -> Table:
    """The same over several seeds: mean ± standard deviation."""
    from statistics import mean, stdev

    from rich.table import Table

    found = Table(title=f"{len(summaries)} seeds, mean ± deviation", title_justify="left")
    for head in ("", "last epoch", "best epoch"):
        found.add_column(head, justify="right" if head else "left")

    def spread(values):
        return f"{mean(values):.2%} ± {stdev(values):.2%}" if len(values) > 1 else f"{values[0]:.2%}"

    for what, pick in (
        ("teacher", lambda s: (s["teacher"]["top1"], None)),
        ("student alone", lambda s: (s["alone"]["last"]["top1"], s["alone"]["best"]["test_top1"])),
        ("distilled student", lambda s: (s["last"]["top1"], s["best"]["test_top1"])),
    ):
        key = {"teacher": "teacher", "student alone": "alone"}.get(what)
        if key is None or all(key in s for s in summaries):
            last, best = zip(*(pick(s) for s in summaries))
            found.add_row(what, spread(last), spread(best) if best[0] is not None else "")
    return found
