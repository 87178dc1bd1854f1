"""`kdray runs`: what has been run, and how it stands."""

from __future__ import annotations

import socket
import time
from typing import Annotated

import typer


def runs(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of objects with `name`.")] = False,
) -> None:
    """List the runs, searches and tables of the project's run folder and how they stand, the newest last; the same as
    `kdray list runs`.

    A run is created, running, finished, interrupted, failed, or died: its process is gone, and it could not say so.
    `kdray resume` goes on with the last three; with a search `kdray tune --resume`, with a table the command that began
    it. With --json there is more: the folder, the progress, the time of the last sign.

    Examples:

        kdray runs

        kdray runs --json
    """
    from .list_ import Kind, list_

    list_(Kind.runs, as_json=as_json)


def brief(row: dict) -> dict:
    """What the table shows of a row of `kdray.run.folder.list_runs`."""
    return {**{key: row[key] for key in ("name", "state", "last", "best")}, "at": _at(row)}


def _at(row: dict) -> str:
    """The error of a run that failed; else where one stands that is not finished, and what a search has tried."""
    from ..run.console import duration, standing

    if row["state"] == "failed":
        return row["error"] or ""
    if row["parts"] is not None:
        return f"{row['kind']}, {'trials' if row['kind'] == 'search' else 'runs'}: {row['parts']}"
    if row["state"] == "finished":
        return ""
    now = row["progress"] or {}
    of = f" of {now['epochs']} epochs" if now.get("phase") == "training" and "epochs" in now else ""
    elsewhere = row["state"] == "running" and row["host"] != socket.gethostname()
    sign = f"on {row['host']}, last sign {duration(time.time() - row['heard'])} ago" if elsewhere else ""
    return ", ".join(filter(None, (f"{standing(now)}{of}", sign)))
