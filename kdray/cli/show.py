"""`kdray show`"""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import ConfigFile, Overrides


def show(
    config: ConfigFile,
    overrides: Overrides = None,
    origin: Annotated[
        bool, typer.Option("--origin/--no-origin", help="Say in a comment where each value comes from.")
    ] = True,
) -> None:
    """Print a config with everything filled in, and where each value comes from. The output is a valid config.

    Examples:

        kdray show configs/crd.yaml

        kdray show configs/crd.yaml optimizer.lr=0.1 --no-origin > mine.yaml
    """
    from ..config.load import annotated_yaml, load_config, to_yaml
    from ..registry import Registry

    loaded = load_config(config, overrides or [], registry=Registry.default())
    typer.echo(annotated_yaml(loaded) if origin else to_yaml(loaded.config), nl=False)
