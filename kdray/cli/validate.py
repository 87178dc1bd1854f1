"""`kdray validate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def validate(
    configs: Annotated[list[Path], typer.Argument(help="Config files.", metavar="CONFIG...")],
    build: Annotated[
        bool, typer.Option("--build", help="Also load the data and build networks and losses, as a run would.")
    ] = False,
) -> None:
    """Check configs without running them. All that is wrong is told at once, with file, line and column.

    Examples:

        kdray validate configs/methods/*.yaml

        kdray validate configs/quickstart.yaml --build
    """
    from ..config.load import load_config
    from ..config.project import find_project
    from ..errors import KdrayError
    from ..launch.experiment import Experiment
    from ..registry import Registry
    from ..run.console import Console

    registry, worst = Registry.default(), 0
    for path in configs:
        try:
            config = load_config(path, registry=registry).config
            if build:
                Experiment(registry, find_project(), Console(), "").check(config)
        except KdrayError as error:
            typer.echo(f"{error}", err=True)
            worst = max(worst, error.exit_code)
        else:
            typer.echo(f"{path}: ok")
    if worst:
        raise typer.Exit(worst)
