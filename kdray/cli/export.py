"""`kdray export`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..run.tables import new_table
from .arguments import AsJson


def export(
    run: Annotated[str, typer.Argument(help="A run, by name or path.", metavar="RUN")],
    format: Annotated[
        Literal["pytorch", "torch.export", "onnx"] | None,
        typer.Option(
            "--format",
            help="What the file is: a state dict, a torch.export program, or ONNX. [torch.export; with --int8, onnx]",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Weights and activations in 8 bits, calibrated on training pictures, beside fp32 in a table."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. [export/ in the run's folder]")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best epoch's weights, not the last one's.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's student as a file that runs elsewhere, its normalisation, class names and accuracy inside.

    Pictures go in as bytes, uint8 (batch, channels, height, width), logits come out; the batch has any size. The file
    is put in place when it answers test pictures as the run's student does.

    Examples:

        kdray export quickstart

        kdray export quickstart --best --format onnx -o digits.onnx

        kdray export quickstart --int8
    """
    from ..config.project import find_project
    from ..registry import Registry
    from ..run.folder import find_run
    from ..ship.export import export as write

    project = find_project()
    name = format or ("onnx" if int8 else "torch.export")
    found = write(find_run(run, project.runs), name, output, best, Registry.default(), project.data, int8)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    accuracy = f", {found['accuracy']:.2%} on the test set" if found["accuracy"] is not None else ""
    shape = " × ".join(map(str, found["input"]["shape"]))
    typer.echo(
        f"{found['file']}: {found['bytes'] / 1e6:,.2f} MB, {found['network']['model']}{accuracy}\n"
        f"  in   pictures, uint8 {shape}; out logits of {len(found['classes'])} classes\n"
        f"  checked on test pictures: logits {'in fp32 ' if int8 else ''}differ by {found['difference']:.1e} at most"
    )
    if int8:
        _print_versus(found["versus"], found["int8"])


def _print_versus(beside: dict, int8: dict) -> None:
    """fp32 and int8: accuracy, size, time."""
    from rich.console import Console

    sizes = list(beside["fp32"]["milliseconds"])
    table = new_table("", "test accuracy", "size", *(f"ms for {size}" for size in sizes))
    for column in table.columns[1:]:
        column.justify = "right"
    for name in ("fp32", "int8"):
        one = beside[name]
        times = (f"{one['milliseconds'][size]:,.3f}" for size in sizes)
        table.add_row(name, f"{one['accuracy']:.2%}", f"{one['bytes'] / 1e6:,.3f} MB", *times)
    Console().print(table)
    trained = "trained for 8 bits, the rest " if int8["trained_for"] else ""
    typer.echo(
        f"run by {beside['backend']}; medians of repeats in turns\n"
        f"{trained}calibrated on {int8['calibrated_on']:,} training pictures; of {beside['pictures']:,} test pictures "
        f"int8 says what fp32 says for {beside['agreement']:.2%}, "
        f"and logits differ by {beside['difference']:.2g} at most"
    )
