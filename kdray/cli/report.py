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
    """Write a page about finished runs: results, learning curves, classes, calibration, agreement with the teacher.

    Runs that differ by the seed alone are one method, with mean and deviation. The page holds its pictures and needs no
    network; they are beside it as PNGs, with all numbers in report.json. Its path is printed.

    Examples:

        kdray report quickstart

        kdray report kd-seed0 kd-seed1 crd-seed0 crd-seed1 -o kd-and-crd
    """
    from ..config.project import find_project
    from ..registry import Registry
    from ..run.folder import find_run
    from ..ship.report import report as write

    project = find_project()
    file, left_out = write([find_run(run, project.runs) for run in runs], output, Registry.default(), project.data)
    for line in left_out:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(str(file))
