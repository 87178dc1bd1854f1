"""`kdray export`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .arguments import AsJson


def export(
    run: Annotated[str, typer.Argument(help="A run, by name or path.", metavar="RUN")],
    format: Annotated[
        Literal["pytorch", "torch.export", "onnx"],
        typer.Option("--format", help="What the file is: a state dict, a torch.export program, or ONNX."),
    ] = "torch.export",
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
    """
    from ..config.project import find_project
    from ..registry import Registry
    from ..run.folder import find_run
    from ..ship.export import export as write

    project = find_project()
    found = write(find_run(run, project.runs), format, output, best, Registry.default(), project.data)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    accuracy = f", {found['accuracy']:.2%} on the test set" if found["accuracy"] is not None else ""
    shape = " × ".join(map(str, found["input"]["shape"]))
    typer.echo(
        f"{found['file']}: {found['bytes'] / 1e6:,.2f} MB, {found['network']['model']}{accuracy}\n"
        f"  in   pictures, uint8 {shape}; out logits of {len(found['classes'])} classes\n"
        f"  checked on test pictures: logits differ by {found['difference']:.1e} at most"
    )
