"""`kdray reproduce`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .arguments import Address, AsJson, command_line


def reproduce(
    table: Annotated[
        str, typer.Argument(help="A published table: crd1, crd2, or a file of your own.", metavar="TABLE")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values for all configs, teachers' too: `schedule.epochs=2`.", metavar="[KEY=VALUE]..."),
    ] = None,
    pairs: Annotated[str | None, typer.Option("--pairs", help="Only these, with commas between them.")] = None,
    methods: Annotated[str | None, typer.Option("--methods", help="Only these, with commas between them.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="These in the place of the table's: 0,1,2.")] = None,
    configs: Annotated[
        Path, typer.Option("--configs", help="The folder with the methods' and teachers' configs.")
    ] = Path("configs"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the folder. Default: the table's.")] = None,
    max_concurrent: Annotated[int | None, typer.Option("--max-concurrent", min=1, help="Runs at a time.")] = None,
    cpus_per_run: Annotated[
        float | None, typer.Option("--cpus-per-run", min=0.01, help="CPUs of a run, fractions allowed. Default: 1.")
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option("--gpus-per-run", min=0, help="GPUs of a run, fractions allowed. Default: 1 where there are any."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much work it is, train nothing.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Run a published table again, or a part of it, and put our numbers beside the published ones.

    Given again, it goes on where it stopped, and with more pairs, methods and seeds where more are asked for.

    Examples:

        kdray reproduce crd1 --dry-run

        kdray reproduce crd1 --pairs wrn_40_2-wrn_16_2 --methods alone,kd,crd --seeds 0 --gpus-per-run 0.25

        kdray reproduce crd2 --address auto
    """
    from pydantic import ValidationError

    from ..config.project import find_project
    from ..config.tune import TuneConfig
    from ..errors import ConfigError, RunFailed
    from ..launch.reproduce import Reproduce
    from ..registry import Registry
    from ..reproduce.cells import Part, job_of
    from ..reproduce.result import markdown
    from ..reproduce.table import find_table
    from ..run.console import Console

    registry, project = Registry.default(), find_project()
    called, found = find_table(table)
    part = Part(pairs, methods, seeds, tuple(overrides or ()))
    job = job_of(name or called, found, part, configs, project.runs, registry)
    console, address = Console(), address or project.ray_address
    experiment = Reproduce(registry, project, console, command_line(), address)
    plan = experiment.plan(job)
    summary = plan.summary()
    if dry_run:
        typer.echo(json.dumps(summary, indent=2) if as_json else _plan_text(summary))
        return
    console.say(_plan_text(summary))
    try:
        limits = TuneConfig(max_concurrent=max_concurrent, cpus_per_trial=cpus_per_run, gpus_per_trial=gpus_per_run)
    except ValidationError as error:
        raise ConfigError(str(error)) from None
    result = experiment.start(plan, limits)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(markdown(job.name, found, job.overrides, result["cells"]))
        typer.echo(str(Path(result["path"]) / "table.md"))
    if failed := sum(len(entry["failed"]) for entry in result["cells"]):
        raise RunFailed(f"{failed} of {len(job.cells)} cells failed; the same command tries them again")


def _plan_text(plan: dict) -> str:
    from ..run.console import duration
    from ..run.wording import counted

    macs = plan["macs"]
    counts = " × ".join(counted(len(plan[kind + "s"]), kind) for kind in ("pair", "method", "seed"))
    lines = [
        f"{plan['name']}: {plan['table']}",
        f"  {counts}: {counted(plan['runs'], 'run')}, {plan['finished']:,} of them finished, {plan['left']:,} to do; "
        f"{counted(plan['teachers'], 'teacher')} to train first",
        f"  left: {counted(plan['epochs'], 'epoch')}, {plan['pictures']:,} pictures, {macs:.2g} multiply-accumulates, "
        f"were all teachers live: {duration(macs / 1e12)} at 10¹² a second",
    ]
    return "\n".join([*lines, *(f"  cannot be built: {run}: {why}" for run, why in plan["failed"].items())])
