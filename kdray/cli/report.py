"""`kdray report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[str], typer.Argument(help="Finished runs, by name or path.", metavar="RUN...")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder. [report/ in the first run's folder]")
    ] = None,
) -> None:
    """Write a page about finished runs: results, learning curves, classes, calibration, agreement with the teacher,
    similarity of stages, maps of embeddings.

    Runs that differ by the seed alone are one method, with mean and deviation; `kd` stands for kd-seed0, kd-seed1 and
    so on, as `train --seeds` names them, where no run is called kd. The page holds its pictures and needs no
    network; they are beside it as PNGs, with all numbers in report.json. Its path is printed.

    Examples:

        kdray report quickstart

        kdray report kd crd-seed0 crd-seed1 -o kd-and-crd
    """
    from ..config.project import find_project
    from ..registry import Registry
    from ..run.folder import find_seeds
    from ..ship.report import report as write

    project = find_project()
    found = [one for run in runs for one in find_seeds(run, project.runs)]
    file, left_out = write(found, output, Registry.default(), project.data)
    for line in left_out:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(str(file))
