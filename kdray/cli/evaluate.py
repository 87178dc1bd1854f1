"""`kdray evaluate`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .arguments import AsJson


def evaluate(
    what: Annotated[
        str,
        typer.Argument(help="A run, by name or path; or a file of weights, with --config.", metavar="RUN|CHECKPOINT"),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace those of the config.", metavar="[KEY=VALUE]...")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The config that a file of weights belongs to.")
    ] = None,
    role: Annotated[
        str, typer.Option("--as", help="Which network of the config the weights are: student, teacher, or one by name.")
    ] = "student",
    best: Annotated[
        bool, typer.Option("--best", help="Of a run: the best epoch's weights, not the last one's.")
    ] = False,
    split: Annotated[
        Literal["test", "validation", "train"], typer.Option("--split", help="Which part of the data.")
    ] = "test",
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of a run's student, or of any file of weights. Every sample counts once.

    Examples:

        kdray evaluate quickstart --best

        kdray evaluate resnet56.th --config configs/mine.yaml --as teacher
    """
    from ..config.load import load_config
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..launch.arithmetic import decided
    from ..launch.measure import measure
    from ..registry import Registry
    from ..run.folder import find_run

    registry, project = Registry.default(), find_project()
    if Path(what).is_file():
        if config is None:
            raise ConfigError(
                f"{what} is a file of weights: say which config it belongs to, --config CONFIG "
                "(and --as teacher for a teacher's)"
            )
        source, weights = config, Path(what)
        if best:
            raise ConfigError("--best is for runs; this is a file of weights")
    else:
        if config is not None or role != "student":
            raise ConfigError(
                f"--config and --as are for files of weights, and there is no file {what}; a run has its own config"
            )
        run = find_run(what, project.runs)
        source, weights = run.config_file, run.weights(best)
    loaded = decided(load_config(source, overrides or [], registry=registry).config)
    result = {
        "weights": str(weights),
        "split": split,
        **measure(loaded, registry, project.data, str(weights), role, split),
    }
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(
            f"{result['top1']:.2%} top-1, {result['top5']:.2%} top-5, loss {result['loss']:.4f}: "
            f"{result['samples']:,} samples of {split}"
        )
