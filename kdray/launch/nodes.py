"""Whether the nodes of a cluster can hold workers of a run: looked at before anything is started or written."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError

PATIENCE = 60.0
"""Seconds in which a node must answer."""


def refuse_vanishing(run: Path) -> None:
    """Raises ConfigError for a run folder in the copy of a project that Ray makes for a job and removes after it."""
    if "working_dir_files" in run.parts:
        raise ConfigError(
            f"the run folder {run} would be in the working directory of a Ray job, which is removed after the job: "
            "set run.dir, or [paths] runs in kdray.toml, to a folder that stays, on storage that every node shares"
        )


def check_nodes(ray, nodes: dict[str, str], shared: Path | None, needed: dict[str, Path]) -> None:
    """Raises ConfigError with all that is wrong on any node.

    nodes: id to address. shared: a folder that every node must see as this process sees it; it may not be there yet.
    needed: what a file or folder is, to its path; where this process has it, each node must have it too.
    """
    there = {what: str(path) for what, path in needed.items() if path.exists()}
    wrong = []
    try:
        with marker(shared) if shared else contextlib.nullcontext("") as file:
            for name, answer in ask(ray, nodes, _probe(), str(file), there):
                lines = [answer] if isinstance(answer, str) else _complaints(answer, shared, there)
                wrong += [f"node {name}: {line}" for line in lines]
    except OSError as error:
        raise ConfigError(
            f"the run folder cannot be made in {shared}: {error.strerror or error}. Choose another with run.dir=…, or "
            "kdray.toml's [paths] runs"
        ) from error
    if wrong:
        raise ConfigError("\n".join(["the cluster cannot run this:", *wrong]))


def ask(ray, nodes: dict[str, str], look: Callable, *arguments) -> Iterator[tuple[str, Any]]:
    """What `look(*arguments)` returns on each node, which must be no text: that says why a node gave no answer.

    nodes: id to address; they are told as `address (id)`. look: sent by value, if it is defined inside a function."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for node in nodes:
        pinned = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        asked[node] = pinned.remote(*arguments)
    for node, promise in asked.items():
        try:
            answer = ray.get(promise, timeout=PATIENCE)
        except ray.exceptions.RayError as error:
            answer = f"it does not answer: {str(error).strip().splitlines()[-1]}"
        yield f"{nodes[node]} ({node[:8]})", answer


def _probe():
    """A function that is sent by value: a node may have no kdray, and is to say so."""

    def look(marker: str, needed: dict[str, str]) -> dict:
        import os

        try:
            from kdray import __version__ as installed
        except ImportError:
            installed = None
        missing = [what for what, path in needed.items() if not os.path.exists(path)]
        writes = marker and os.path.exists(marker) and os.access(os.path.dirname(marker), os.W_OK)
        return {"version": installed, "missing": missing, "sees": bool(writes)}

    return look


def _complaints(answer: dict, shared: Path | None, needed: dict[str, str]) -> Iterator[str]:
    if answer["version"] is None:
        yield f"kdray is not installed there; install kdray {__version__} on every node"
    elif answer["version"] != __version__:
        yield f"it has kdray {answer['version']}, and here is {__version__}: install the same on every node"
    if shared and not answer["sees"]:
        yield (
            f"it does not see {shared} as it is here, or cannot write there: put runs (run.dir, or [paths] runs in "
            "kdray.toml) on storage that every node shares"
        )
    for what in answer["missing"]:
        yield f"{what} {needed[what]} is not there: put it on storage that every node shares, or copy it to each node"


@contextlib.contextmanager
def marker(folder: Path) -> Iterator[Path]:
    """While it is open, a file of a new name in `folder`. What was not there before is gone afterwards. Raises OSError
    where it cannot be made."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / f".kdray-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):  # somebody uses it by now
                path.rmdir()
