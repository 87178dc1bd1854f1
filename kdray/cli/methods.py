"""The facts about every distiller: for `kdray list distillers`, and as the page docs/methods.md."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

CACHEABLE = {"logits", "embedding", "head"}
"""What a cache of the teacher can hold, or needs not to."""
PAIRS = {"resnet8x4": "ResNet-32x4 → ResNet-8x4", "wrn_16_2": "WRN-40-2 → WRN-16-2"}
"""The pairs of networks of `Published`."""

HEAD = """\
# Methods

Every distiller of kdray: a name under `losses` of a config. `kdray list distillers --json` says the same.

- **student / teacher**: the outputs of each that the loss reads; one list where they are the same. The section of a
  method says which further pictures of a sample it needs, by the names of `data.extra_views`.
- **cache**: stored outputs of the teacher can serve it, since it reads no more than logits, embedding and classifier.
- **over**: `sample`, a mean over samples; or `batch`, it relates the samples of the global batch to each other, over
  all workers, or keeps statistics of them.
- **stage**: something trains, or is measured, before the main loop.
- **8x4**, **16-2**: the test accuracy (%) that the literature gives on CIFAR-100, for ResNet-32x4 teaching ResNet-8x4
  and WRN-40-2 teaching WRN-16-2. The section of a method names the source; kdray has not measured them.

Left out are WCoRD (Chen et al., CVPR 2021), which has no public reference code, and whose weights are not given in what
could be consulted; and CRCD (Zhu et al., CVPR 2021), whose public code is incomplete.

This page is written by `kdray list distillers --markdown > docs/methods.md`.
"""


def facts(cls, name: str) -> dict:
    """What a distiller is, without building it."""
    from ..distiller import Distiller

    requires, published = cls.requires, cls.published
    return {
        "paper": cls.paper,
        "student": sorted(requires.student),
        "teacher": sorted(requires.teacher),
        "views": list(requires.views),
        "cache": requires.teacher <= CACHEABLE,
        "over": cls.scope,
        "stage": cls.stages is not Distiller.stages,
        "own_network": cls.deployed is not Distiller.deployed,
        "scheduled": sorted(cls.scheduled),
        "published": {pair: getattr(published, pair, None) for pair in PAIRS},
        "source": published.source if published else "",
        "configs": _configs(name),
        "doc": inspect.cleandoc(cls.__doc__ or ""),
    }


def _configs(name: str) -> list[str]:
    """The files of a method: those of its name, then those whose names go on after it (crd_queue.yaml)."""
    folders = [Path("configs", folder) for folder in ("methods", "repdistiller", "")]
    found = [p for form in (f"{name}.yaml", f"{name}_*.yaml") for folder in folders for p in sorted(folder.glob(form))]
    return [path.as_posix() for path in found]


def brief(row: dict) -> dict:
    """A row of the table: in a terminal, and at the head of the page."""
    sides = [_words(row["student"]), _words(row["teacher"])]
    return {
        "name": row["name"],
        "summary": row["summary"],
        "student / teacher": sides[0] if sides[0] == sides[1] else " / ".join(sides),
        "cache": "yes" if row["cache"] and row["teacher"] else "",
        "over": row["over"],
        "stage": "yes" if row["stage"] else "",
        "8x4": _percent(row["published"]["resnet8x4"]),
        "16-2": _percent(row["published"]["wrn_16_2"]),
    }


def _percent(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def markdown(rows: list[dict]) -> str:
    """The page: a table of all, then a section each."""
    rows = sorted(rows, key=lambda row: row["name"])
    columns = list(brief(rows[0]))
    table = [_line(columns), _line(["---"] * len(columns))]
    table += [_line([*(brief(row) | {"name": f"[{row['name']}](#{row['name']})"}).values()]) for row in rows]
    return "\n".join([HEAD, *table, "", *map(_section, rows)])


def _section(row: dict) -> str:
    reads = f"reads of the student: {_words(row['student'])}; of the teacher: {_words(row['teacher'])}"
    numbers = [f"{PAIRS[pair]} {_percent(number)}" for pair, number in row["published"].items() if number is not None]
    points = [
        f"paper: {row['paper']}" if row["paper"] else "",
        reads + (f"; on the views {_words(row['views'])} too" if row["views"] else ""),
        f"a cached teacher {'can' if row['cache'] else 'cannot'} serve it" if row["teacher"] else "needs no teacher",
        "over the global batch, of all workers" if row["over"] == "batch" else "a mean over samples",
        "has a first stage" if row["stage"] else "",
        "evaluates and exports a network of its own in the student's place" if row["own_network"] else "",
        f"published: {', '.join(numbers)} ({row['source']})" if numbers else "",
        f"run it: {', '.join(f'`kdray train {config}`' for config in row['configs'])}" if row["configs"] else "",
    ]
    lines = [f"## {row['name']}", "", row["summary"], "", "```text", row["doc"], "```", ""]
    lines += [f"- {point}" for point in points if point]
    if row["options"]:
        lines += ["", _line(["option", "default", ""]), _line(["---"] * 3)]
        lines += [_line(cells) for cells in _options(row["options"], row["scheduled"])]
    return "\n".join([*lines, ""])


def _options(options: dict, scheduled: list[str], prefix: str = "", remark: str = "") -> list[list[str]]:
    found = []
    for name, option in options.items():
        default = f"`{_flow(option['default'])}`" if "default" in option else "required"
        may_move = " May move over the epochs." if name in scheduled and not prefix else ""
        found.append([f"`{prefix}{name}`", default, f"{remark}{option['description']}{may_move}"])
        for choice, inner in option.get("choices", {}).items():
            found += _options(inner, [], f"{prefix}{name}.", f"({choice}) ")
    return found


def _words(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _flow(value) -> str:
    """A value as a config would say it, on one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()
