"""`kdray tune`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .arguments import Address, AsJson, Overrides, command_line


def tune(
    config: Annotated[
        Path | None, typer.Argument(help="A config file; its section `tune` says what is searched.", metavar="[CONFIG]")
    ] = None,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="How many. [tune.trials]")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option("--max-concurrent", min=1, help="Trials at a time. [tune.max_concurrent]")
    ] = None,
    trial_workers: Annotated[
        int | None, typer.Option("--trial-workers", min=1, help="Workers of each trial. [tune.trial_workers]")
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option("--gpus-per-trial", min=0, help="GPUs of a trial, fractions allowed. [tune.gpus_per_trial]"),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the search's folder. [run.name]")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Go on with the search of this name (or path).", metavar="NAME")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, train nothing.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Search the hyper-parameters of CONFIG by many short runs, and train the winner.

    Trials are compared on a validation split; the test set is measured for the winner alone. What comes out is
    `best.yaml`, which `kdray train` takes.

    Examples:

        kdray tune configs/tune/quickstart.yaml

        kdray tune configs/crd.yaml --trials 32 --gpus-per-trial 0.25

        kdray tune configs/tune/quickstart.yaml --dry-run

        kdray tune --resume tune-quickstart
    """
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..launch.tune import Tune, prepare
    from ..registry import Registry
    from ..run.console import Console

    flags = {
        "tune.trials": trials,
        "tune.max_concurrent": max_concurrent,
        "tune.trial_workers": trial_workers,
        "tune.gpus_per_trial": gpus_per_trial,
        "run.name": name,
    }
    changes = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    if config is None and resume is None:
        raise ConfigError("name a config, as in `kdray tune configs/tune/quickstart.yaml`, or --resume a search")
    if config is None and changes:
        raise ConfigError(f"a search goes on as it has begun: {changes[0].partition('=')[0]} cannot change")
    registry, project = Registry.default(), find_project()
    address = address or project.ray_address
    search = Tune(registry, project, Console(), command_line(), address)
    prepared = prepare(config, [*(overrides or []), *changes], registry, address) if config else None
    if dry_run:
        if prepared is None:
            raise ConfigError("--dry-run is for a config, not for a search that has begun")
        plan = search.plan(prepared)
        typer.echo(json.dumps(plan, indent=2) if as_json else _plan_text(plan))
        return
    summary = search.resume(resume, prepared) if resume else search.start(prepared)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _report(summary)


def _plan_text(plan: dict) -> str:
    stops = f", {plan['scheduler']} stops the worse ones early" if plan["scheduler"] != "none" else ""
    lines = [
        f"{plan['name']}: {plan['trials']} trials by {plan['searcher']}{stops}",
        f"  metric   {', '.join(plan['metric'])}",
        f"  data     {plan['train']:,} training, {plan['validation']:,} validation samples",
        f"  budget   {plan['epochs_of_full_trials']:,} epochs, were none stopped; {plan['epochs']:,} of the winner",
    ]
    if plan["trial_workers"] > 1:
        lines.append(f"  workers  {plan['trial_workers']} a trial, a Ray Train run each")
    for path, how in plan["space"].items():
        (kind, values), *conditions = how.items()
        only = "".join(f", where {p} is {json.dumps(v)}" for _, when in conditions for p, v in when.items())
        lines.append(f"  space    {path}: {kind} {json.dumps(values)}{only}")
    return "\n".join([*lines, *(f"  note     {note}" for note in plan["notes"])])


def _report(summary: dict) -> None:
    from rich.console import Console

    from ..run.search import shown, table
    from ..run.summary import seeds_table
    from ..run.summary import table as run_table
    from ..run.trials import read_trials

    out, runs, first = Console(soft_wrap=True), summary["runs"], summary["metrics"][0]
    if not out.is_terminal:
        out.width = 10_000  # whoever reads a pipe looks for lines
    best, spent, full = summary["winner"], summary["epochs"], summary["epochs_of_full_trials"]
    out.print()
    out.print(table(read_trials(Path(summary["path"])), summary["metrics"]))
    out.print(
        f"winner: trial {best['trial']}, {first} {shown(first, best[first])} after {best['epochs']} epochs; "
        f"all trials took {spent:,} epochs, {spent / full:.0%} of {full:,}"
    )
    for run in runs:
        out.print()
        out.print(run_table(run))
    if len(runs) > 1:
        out.print()
        out.print(seeds_table(runs))
    out.print()
    for file in (summary["results"], *summary["plots"]):
        out.print(file, markup=False, highlight=False)
    out.print(f"train the winner again: kdray train {summary['best_yaml']}", markup=False, highlight=False)
