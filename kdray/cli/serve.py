"""`kdray serve`"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer


def serve(
    what: Annotated[str, typer.Argument(help="A run, or a file of `kdray export`.", metavar="RUN|FILE")],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where it listens.")] = 8000,
    host: Annotated[str, typer.Option("--host", help="0.0.0.0 for others than this machine.")] = "127.0.0.1",
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Processes that answer, a CPU each.")] = 1,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Most pictures that are answered together.")
    ] = 32,
    best: Annotated[bool, typer.Option("--best", help="Of a run: the best epoch's weights.")] = False,
) -> None:
    """Answer pictures over HTTP, with Ray Serve on this machine, until Ctrl-C. (pip install 'kdray[serve]')

    POST / with a picture as the body gives the likeliest classes with their probabilities; GET /health.

    Examples:

        kdray serve quickstart

        kdray serve runs/quickstart/export/quickstart-int8.onnx --port 9000 --replicas 2

        curl --data-binary @digit.png http://127.0.0.1:8000/?top=3
    """
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..launch.serve import need_serve
    from ..launch.serve import serve as run_server
    from ..registry import Registry
    from ..run.folder import find_run
    from ..ship.export import export

    need_serve()
    name = what
    with TemporaryDirectory(prefix="kdray-serve-") as folder:
        if Path(what).is_file():
            if best:
                raise ConfigError("--best is for runs; this is a file")
            file = Path(what)
        else:
            project = find_project()
            run, file = find_run(what, project.runs), Path(folder) / "student.pt2"
            name = run.name
            export(run, "torch.export", file, best, Registry.default(), project.data)

        def ready(address: str) -> None:
            typer.echo(f"{name} answers at {address} (replicas: {replicas}): Ctrl-C ends it")

        try:
            run_server(file, host, port, replicas, max_batch, ready)
        except KeyboardInterrupt:
            typer.echo("stopped")
