"""`kdray predict`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .arguments import AsJson


def predict(
    what: Annotated[str, typer.Argument(help="A run, or a file of `kdray export`.", metavar="RUN|FILE")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, and folders of them.", metavar="PICTURE...")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes of each, the likeliest first.")] = 3,
    best: Annotated[bool, typer.Option("--best", help="Of a run: the best epoch's weights.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell the likeliest classes of pictures. A picture of another size than the student knows is made to fit it.

    Examples:

        kdray predict quickstart digits/3.png digits/7.png

        kdray predict student.onnx photos --top 5 --json
    """
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..registry import Registry
    from ..run.folder import find_run
    from ..ship.export import student_of
    from ..ship.formats import read
    from ..ship.predict import files_of
    from ..ship.predict import predict as ask

    registry, project, files = Registry.default(), find_project(), files_of(pictures)
    if Path(what).is_file():
        if best:
            raise ConfigError("--best is for runs; this is a file")
        runs, facts = read(Path(what))
    else:
        runs, facts = student_of(find_run(what, project.runs), best, registry, project.data)
    found = ask(runs, facts, files, top, registry)
    if as_json:
        typer.echo(json.dumps(list(found), indent=2))
        return
    for one in found:
        likely = ", ".join(f"{name} {share:.1%}" for name, share in zip(one["classes"], one["probabilities"]))
        typer.echo(f"{one['file']}: {likely}")
