"""`kdray validate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def validate(
    configs: Annotated[
        list[str],
        typer.Argument(help="Config files, and values to replace in all.", metavar="CONFIG... [KEY=VALUE]..."),
    ],
    build: Annotated[
        bool, typer.Option("--build", help="Also load the data and build networks and losses, as a run would.")
    ] = False,
) -> None:
    """Check configs without running them. All that is wrong is told at once, with file, line and column.

    Examples:

        kdray validate configs/methods/*.yaml

        kdray validate configs/quickstart.yaml --build

        kdray validate configs/crd.yaml losses.crd.temperature=0.1
    """
    from ..config.load import load_config
    from ..config.project import find_project
    from ..errors import ConfigError, KdrayError
    from ..launch.experiment import Experiment
    from ..registry import Registry
    from ..run.console import Console

    overrides = [each for each in configs if "=" in each and not Path(each).exists()]
    files = [each for each in configs if each not in overrides]
    if not files:
        raise ConfigError(f"{' '.join(overrides)}: name the config file, too, in which this is to be replaced")
    registry, worst = Registry.default(), 0
    for path in files:
        try:
            config = load_config(path, overrides, registry=registry).config
            if build:
                Experiment(registry, find_project(), Console(), "").check(config)
        except KdrayError as error:
            typer.echo(f"{error}", err=True)
            worst = max(worst, error.exit_code)
        else:
            typer.echo(f"{path}: ok")
    if worst:
        raise typer.Exit(worst)
