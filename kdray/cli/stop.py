"""`kdray stop`"""

from __future__ import annotations

import time
from typing import Annotated

import typer


def stop(
    run: Annotated[
        str, typer.Argument(help="Name or path of a run, a search or a table (`kdray runs`).", metavar="RUN")
    ],
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for it; the request stays after them.")
    ] = 600.0,
) -> None:
    """Ask a run for a checkpoint and to stop, from wherever its folder is seen. `kdray resume RUN` goes on with it.

    A search stops as by Ctrl-C: trials go on from their last checkpoints at `kdray tune --resume SEARCH`; so does a
    table, when `kdray reproduce` is given again.

    Examples:

        kdray stop crd-wrn

        kdray stop tune-quickstart
    """
    from ..config.project import find_project
    from ..errors import RunFailed
    from ..run.asking import STOP, ask
    from ..run.folder import find_any

    found = find_any(run, find_project().runs)
    if found.state not in ("running", "created"):
        typer.echo(f"{found.name} is not running: {found.state}")
        return
    ask(found.path, STOP)
    until = time.monotonic() + wait
    while found.state in ("running", "created") and time.monotonic() < until:
        time.sleep(0.2)
    match found.state:
        case "interrupted":
            typer.echo(f"{found.name} has stopped: `{found.how_to_resume}` goes on with it")
        case "finished":
            typer.echo(f"{found.name} has finished meanwhile")
        case "running" | "created":
            raise RunFailed(
                f"{found.name} has not stopped in {wait:g} s. It is asked still, and stops after its next step; two "
                f"Ctrl-C where it runs (process {found.status.get('pid')} on {found.status.get('host')}) end it at once"
            )
        case other:
            raise RunFailed(f"{found.name} has not stopped as asked, it has {other}: {found.status.get('error', '')}")
