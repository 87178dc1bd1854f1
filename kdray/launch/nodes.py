"""Whether the nodes of a cluster can hold workers of a run: looked at before anything is started or written."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from .. import __version__
from ..errors import ConfigError

PATIENCE = 60.0
"""Seconds in which a node must answer."""


def check_nodes(ray, nodes: dict[str, str], shared: Path | None, needed: dict[str, Path]) -> None:
    """Raises ConfigError with all that is wrong on any node.

    nodes: id to address. shared: a folder that every node must see as this process sees it; it may not be there yet.
    needed: what a file or folder is, to its path; where this process has it, each node must have it too.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = {what: str(path) for what, path in needed.items() if path.exists()}
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    with _marker(shared) as marker:
        asked = {}
        for node in nodes:
            pinned = probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            asked[node] = pinned.remote(str(marker or ""), there)
        wrong = []
        for node, answer in asked.items():
            try:
                lines = list(_complaints(ray.get(answer, timeout=PATIENCE), shared, there))
            except ray.exceptions.RayError as error:
                lines = [f"it does not answer: {str(error).strip().splitlines()[0]}"]
            wrong += [f"node {nodes[node]} ({node[:8]}): {line}" for line in lines]
    if wrong:
        raise ConfigError("\n".join(["the cluster cannot run this:", *wrong]))


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
def _marker(folder: Path | None) -> Iterator[Path | None]:
    """While it is open, a file of a new name in `folder`. What was not there before is gone afterwards."""
    if folder is None:
        yield None
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / f".kdray-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
        yield file
    except OSError as error:
        raise ConfigError(
            f"the run folder cannot be made in {folder}: {error.strerror or error}. Choose another with run.dir=…, or "
            "kdray.toml's [paths] runs"
        ) from error
    finally:
        file.unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):  # somebody uses it by now
                path.rmdir()
