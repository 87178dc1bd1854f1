"""`kdray list KIND`: what there is to name in a config, and what has been run."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Kind(StrEnum):
    distillers = "distillers"
    models = "models"
    datasets = "datasets"
    augmentations = "augmentations"
    optimizers = "optimizers"
    configs = "configs"
    runs = "runs"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of objects with `name`.")] = False,
) -> None:
    """List what a config can name (distillers, models, datasets, augmentations, optimizers), the configs, or the runs.

    Configs are the YAML files under ./configs. Runs are those of the project's run folder, the newest last. With --json
    there is more: papers, published weights, what each option means, the plugin that provides it.

    Examples:

        kdray list distillers

        kdray list models --json
    """
    rows, warnings = _rows(kind)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
    elif rows:
        _print_table(rows)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def _rows(kind: Kind) -> tuple[list[dict], list[str]]:
    """The objects of a kind, and what the user should know besides."""
    if kind is Kind.configs:
        rows = list_configs(Path("configs"))
        return rows, [] if rows else ["there are no YAML files under ./configs"]
    if kind is Kind.runs:
        from ..config.project import find_project
        from ..run.folder import list_runs

        folder = find_project().runs
        rows = list_runs(folder)
        return rows, [] if rows else [f"there are no runs in {folder}"]
    from ..registry import Registry

    registry = Registry.default()
    warnings = registry.conflicts()
    if registry.host.failed:
        names = ", ".join(info.id for info in registry.host.failed)
        warnings.append(f"plugins that failed to load are not listed: {names}. See `kdray plugins`.")
    specs = getattr(registry, kind)
    return [_describe(kind, spec, registry.owners[kind, name][0]) for name, spec in specs.items()], warnings


def list_configs(folder: Path) -> list[dict]:
    """Every YAML file under `folder`: name without suffix, path, and the first line of comment that is no command."""
    rows = []
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        comments = [line.lstrip("# ").strip() for line in lines if line.startswith("#") and line.strip("# ")]
        said = [comment for comment in comments if not comment.startswith("kdray ")]  # the command that runs it
        name = path.relative_to(folder).with_suffix("").as_posix()
        rows.append({"name": name, "path": path.as_posix(), "summary": next(iter(said), "")})
    return rows


def _describe(kind: Kind, spec, owner) -> dict:
    from ..config.sections import options_class

    row = {"name": spec.name, "summary": _summary(spec)}
    if kind is Kind.distillers:
        requires = spec.cls.requires
        row |= {"paper": spec.cls.paper, "student": sorted(requires.student), "teacher": sorted(requires.teacher)}
    if kind is Kind.models:
        row["weights"] = list(spec.weights)
    row["options"] = {name: field.description for name, field in options_class(spec).model_fields.items()}
    return row | {"plugin": owner.name, "distribution": owner.dist, "version": owner.version}


def _summary(spec) -> str:
    """A spec's own words, or the first line of its class's docstring."""
    text = getattr(spec, "summary", "") or (vars(spec.cls).get("__doc__") if hasattr(spec, "cls") else "") or ""
    return text.strip().split("\n")[0]


_LONG = ("paper", "version", "plugin", "started", "weights")


def _print_table(rows: list[dict]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # The rest is for --json: long, told by the order of the rows, or the same in all of them.
    columns = [name for name in rows[0] if name not in _LONG and any(row[name] not in ("", [], {}) for row in rows)]
    if {row.get("distribution") for row in rows} == {"kdray"}:
        columns.remove("distribution")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    Console(highlight=False).print(table)


def _cell(value) -> str:
    if isinstance(value, list | dict):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)
