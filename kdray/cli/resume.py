"""`kdray resume`"""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import Address, AsJson, CpusPerWorker, NumWorkers, command_line


def resume(
    run: Annotated[str, typer.Argument(help="Name or path of a run (`kdray list runs`).", metavar="RUN")],
    num_workers: NumWorkers = None,
    cpus_per_worker: CpusPerWorker = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was interrupted, from its last checkpoint; also with another number of workers.

    Examples:

        kdray resume quickstart

        kdray resume runs/crd-wrn --num-workers 4
    """
    from ..config.project import find_project
    from ..launch.experiment import Experiment
    from ..registry import Registry
    from ..run.console import Console
    from ..run.folder import find_run
    from .train import report

    project = find_project()
    experiment = Experiment(Registry.default(), project, Console(), command_line(), address)
    found = find_run(run, project.runs)
    report([experiment.resume(found, num_workers=num_workers, cpus_per_worker=cpus_per_worker)], as_json)
