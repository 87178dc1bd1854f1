"""`kdray evaluate`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..run.tables import new_table
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
    corrupt: Annotated[
        bool,
        typer.Option(
            "--corrupt", help="Also on pictures with noise, blur and the like, in five severities (35 more passes)."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run's student, or any file of weights: accuracy, calibration, agreement with the run's teachers. Every
    sample counts once.

    Overrides may name other data than the run was trained on: the test set there is measured, in the classes that the
    network knows, which are matched by name.

    Examples:

        kdray evaluate quickstart --best --corrupt

        kdray evaluate cifar-run data.name=folder data.path=pictures

        kdray evaluate resnet56.th --config configs/mine.yaml --as teacher
    """
    from ..config.load import load_config
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..launch.arithmetic import decided
    from ..registry import Registry
    from ..run.console import Console
    from ..run.folder import find_run
    from ..ship.evaluation import Evaluation, Subject

    registry, project, run = Registry.default(), find_project(), None
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
    before = load_config(source, registry=registry).config if run else None
    evaluation = Evaluation(Subject(weights, loaded, role, run, before), registry, project.data)
    result = evaluation(split, Console() if corrupt else None)
    for note in result["notes"]:
        typer.echo(note, err=True)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show(result)


def _show(result: dict) -> None:
    print(
        f"{result['top1']:.2%} top-1, {result['top5']:.2%} top-5, loss {result['loss']:.4f}: "
        f"{result['samples']:,} samples of {result['split']}"
    )
    if calibration := result.get("calibration"):
        scaled = calibration["scaled"]
        before, after = scaled["before"], scaled["after"]
        print(f"ECE {calibration['ece']:.2%}, NLL {calibration['nll']:.4f}")
        print(
            f"  at temperature {scaled['temperature']:.2f}, fitted on {scaled['fitted_on']}: "
            f"ECE {before['ece']:.2%} → {after['ece']:.2%}, NLL {before['nll']:.4f} → {after['nll']:.4f} "
            f"of {scaled['samples']:,} others"
        )
    for teacher, of in result.get("agreement", {}).items():
        print(f"agreement with the {teacher}: {of['top1']:.2%} top-1, KL {of['kl']:.4f}")
    if "corrupted" in result:
        _show_corrupted(result)


def _show_corrupted(result: dict) -> None:
    from rich.console import Console

    from ..data.corruptions import SEVERITIES

    by_name = result["corrupted"]["by_corruption"]
    table = new_table(title="top-1 of corrupted pictures, by severity")
    for head in ("", *map(str, SEVERITIES), "mean"):
        table.add_column(head, justify="right" if head else "left")
    for name, of in by_name.items():
        table.add_row(name, *(f"{top1:.2%}" for top1 in (*of["top1"], of["mean"])))
    of_severity = (sum(column) / len(by_name) for column in zip(*(of["top1"] for of in by_name.values())))
    table.add_section()
    table.add_row("mean", *(f"{top1:.2%}" for top1 in (*of_severity, result["corrupted"]["top1"])))
    Console(highlight=False, soft_wrap=True).print(table)
