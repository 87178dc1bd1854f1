"""`kdray train`"""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer

from .arguments import Address, AsJson, ConfigFile, CpusPerWorker, NumWorkers, Overrides, command_line, with_flags


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    num_workers: NumWorkers = None,
    cpus_per_worker: CpusPerWorker = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder. [run.name]")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Run once for each of these seeds: 0,1,2.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, print the plan, train nothing.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Print where the time went, and trace some steps into profile/trace.json of each run."
        ),
    ] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Distil a student, or train a teacher: whatever the config says.

    Examples:

        kdray train configs/quickstart.yaml

        kdray train configs/crd.yaml --num-workers 8

        kdray train configs/crd.yaml losses.crd.temperature=0.1 data.batch_size=128 --name crd-warm

        kdray train configs/quickstart.yaml --seeds 0,1,2,3,4 --num-workers 0
    """
    from ..clock import process_began, running
    from ..config.load import load_config
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..launch.arithmetic import decided
    from ..launch.experiment import Experiment
    from ..registry import Registry
    from ..run.console import Console
    from ..run.plan import describe

    registry, project = Registry.default(), find_project()
    changes = with_flags(overrides, num_workers=num_workers, cpus_per_worker=cpus_per_worker, name=name)
    try:
        chosen = [int(seed) for seed in seeds.split(",")] if seeds is not None else [None]
    except ValueError:
        raise ConfigError(f"--seeds wants whole numbers with commas between them, as in 0,1,2; not '{seeds}'") from None
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"--seeds names a seed twice: {seeds}")
    configs = []
    for seed in chosen:
        loaded = load_config(config, changes if seed is None else [*changes, f"seed={seed}"], registry=registry)
        one = loaded.config.model_copy(update={"tune": None})
        configs.append(one if seed is None else _named(one, seed))
    if loaded.config.tune:
        typer.echo("the section tune is for `kdray tune`: the values beside it are run", err=True)
    console, address = Console(), address or project.ray_address
    configs = [decided(each, address, console.say if i == 0 else None) for i, each in enumerate(configs)]
    experiment = Experiment(registry, project, console, command_line(), address, profile=profile)
    if dry_run and profile:
        raise ConfigError("--profile measures a run, and --dry-run makes none: leave one of them out")
    if dry_run:
        found = experiment.plan(configs[0])
        typer.echo(json.dumps(found, indent=2) if as_json else describe(found))
        return
    experiment.refuse_taken(configs)  # all of them, before the first one trains
    for each in configs[1:]:
        if any(teacher.cache for teacher in each.all_teachers.values()):
            experiment.caches_of(each, experiment.check(each).data)  # another seed shows other pictures
    with running(process_began()) if profile else contextlib.nullcontext() as clock:
        runs = [experiment.start(each) for each in configs]
    report(runs, as_json)
    if clock:
        _show_profile(clock, runs[-1], console)


def _named(config, seed: int):
    from ..run.folder import seed_name

    name = seed_name(config.run.name or config.name, seed)
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def _show_profile(clock, run, console) -> None:
    """On standard error, beside the progress: what a script reads is the results."""
    from ..run.profile import operator_table, time_table

    for table in (time_table(clock), operator_table(run.rows("profile")[-1]["operators"], run.name)):
        console.rich.print(table)
    console.say(f"trace, for ui.perfetto.dev or chrome://tracing: {run.path / 'profile' / 'trace.json'}")


def report(runs: list, as_json: bool) -> None:
    """The end of a command: a table for each run, and one over seeds."""
    from rich.console import Console

    from ..run.summary import seeds_table, table

    summaries = [run.summary for run in runs]
    if as_json:
        typer.echo(json.dumps(summaries if len(summaries) > 1 else summaries[0], indent=2))
        return
    out = Console(soft_wrap=True)
    for summary in summaries:
        out.print()
        out.print(table(summary))
        out.print(f"run: {summary['path']}", markup=False, highlight=False)
    if len(summaries) > 1:
        out.print()
        out.print(seeds_table(summaries))
