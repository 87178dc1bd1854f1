"""`kdray probe`"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from .arguments import AsJson


def probe(
    run: Annotated[str, typer.Argument(help="A finished run, by name or path.", metavar="RUN")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of the data set, as in a config's section data.", metavar="[KEY=VALUE]..."),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="The other data set: a name of `kdray list datasets`.", metavar="NAME")
    ] = ...,
    fit: Annotated[
        Literal["lbfgs", "sgd"],
        typer.Option("--fit", help="How the classifier is found: logistic regression, or a layer trained by SGD."),
    ] = "lbfgs",
    teacher: Annotated[bool, typer.Option("--teacher", help="Probe the run's teachers, too.")] = False,
    best: Annotated[bool, typer.Option("--best", help="The best epoch's weights, not the last one's.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of `samples`, and of SGD.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure what a student's embedding is worth on another data set: a linear classifier on the frozen network.

    Pictures are brought to the size that the network was trained on.

    Examples:

        kdray probe crd-wrn --data stl10 --teacher

        kdray probe crd-wrn --data folder path=/data/tiny-imagenet --fit sgd --json
    """
    from ..config.project import find_project
    from ..registry import Registry
    from ..run.folder import find_run
    from ..ship.finished import Finished
    from ..ship.networks import Networks
    from ..ship.probe import transfer

    registry, project = Registry.default(), find_project()
    of = Finished.read(find_run(run, project.runs), registry)
    networks = Networks(registry, project.data)
    result = transfer(of, data, options or [], fit, best, teacher, seed, networks)
    typer.echo(json.dumps(result, indent=2) if as_json else _text(result))


def _text(result: dict) -> str:
    _, height, width = result["input"]
    lines = [
        f"{result['run']} on {result['data']}: {result['train']:,} training and {result['test']:,} test pictures of "
        f"{result['classes']} classes, brought to {height}×{width}; {result['fit']}"
    ]
    for role, found in result["networks"].items():
        late = "" if found.get("converged", True) else "; L-BFGS had not converged"
        shares = f"{found['test']:.2%} test, {found['train']:.2%} training"
        lines.append(f"  {role}: {shares}, from {found['embedding']} numbers{late}")
    return "\n".join(lines)
