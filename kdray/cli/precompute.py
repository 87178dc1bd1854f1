"""`kdray precompute`"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..run.tables import new_table
from .arguments import Address, AsJson, ConfigFile, CpusPerWorker, NumWorkers, Overrides, command_line, with_flags


def precompute(
    config: ConfigFile,
    overrides: Overrides = None,
    num_workers: NumWorkers = None,
    cpus_per_worker: CpusPerWorker = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All pictures of a sample, not only those that the epochs show (crop, flip).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, compute nothing.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Compute and store what the losses of CONFIG need of its teacher; `kdray train` then runs without the teacher.

    What is there already is not computed again: the same command goes on where it was interrupted.

    Examples:

        kdray precompute configs/crd.yaml --num-workers 8

        kdray precompute configs/crd.yaml teacher.cache.path=s3://bucket/caches/wrn_40_2 --num-workers 8

        kdray precompute configs/kd.yaml --dry-run
    """
    from ..config.load import load_config
    from ..config.project import find_project
    from ..launch.arithmetic import decided
    from ..launch.precompute import Precompute
    from ..registry import Registry
    from ..run.console import Console

    registry, project = Registry.default(), find_project()
    changes = with_flags(overrides, num_workers=num_workers, cpus_per_worker=cpus_per_worker)
    console, address = Console(), address or project.ray_address
    loaded = decided(load_config(config, changes, registry=registry).config, address, console.say)
    found = Precompute(registry, project, console, command_line(), address).run(loaded, everything, dry_run)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not dry_run:
        _report(found, loaded)


def _report(found: list[dict], config) -> None:
    from rich.console import Console

    out, table = Console(soft_wrap=True), new_table()
    for column in ("teacher", "stored", "answers", "MB", "computed now", "a second"):
        table.add_column(column, justify="left" if column in ("teacher", "stored") else "right")
    for row in found:
        name = row["teacher"] + (f", view {row['view']}" if row["view"] else "")
        rate = f"{row['computed'] / row['seconds']:,.0f}" if row["computed"] else ""
        stored = f"{', '.join(row['outputs'])} as {row['dtype']}"
        table.add_row(name, stored, f"{row['needed']:,}", f"{row['bytes'] / 1e6:,.1f}", f"{row['computed']:,}", rate)
    out.print()
    out.print(table)
    for path in dict.fromkeys(row["path"] for row in found if not row["view"]):
        out.print(f"cache: {path}", markup=False, highlight=False)
    if not any(teacher.cache for teacher in config.all_teachers.values()):
        keys = ["teacher"] if config.teacher else [f"teachers.{name}" for name in config.teachers]
        out.print("use it: kdray train …", *(f"{key}.cache={{}}" for key in keys), markup=False, highlight=False)
