"""What each node of a cluster has, and which folders it shares: for `kdray doctor`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .nodes import ask, marker

REMEDY = "put it on storage that every node shares (kdray.toml, [paths])"


@dataclass(frozen=True)
class Folder:
    """One that nodes are asked about. must: every node has to see it as this process does; else each may have its
    own."""

    name: str
    path: Path
    must: bool


def look() -> Callable[[dict[str, tuple[str, str]]], dict]:
    """A function that is sent by value: a node may have no kdray, and is to say so."""

    def looked(folders: dict[str, tuple[str, str]]) -> dict:
        """folders: path, and the file there that says that it is the same folder, by name."""
        import os
        import platform
        import subprocess
        from importlib.metadata import PackageNotFoundError, version

        versions = {"python": platform.python_version()}
        for name in ("kdray", "ray", "torch"):
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = "absent"
        try:
            query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
            told = subprocess.run(query, capture_output=True, text=True, timeout=30)
            gpus = [line.strip() for line in told.stdout.splitlines()] if told.returncode == 0 else []
        except (OSError, subprocess.TimeoutExpired):
            gpus = []
        seen = {}
        for name, (path, mark) in folders.items():
            if not (mark and os.path.exists(mark)):
                seen[name] = "other" if os.path.isdir(path) else "absent"
            else:
                seen[name] = "shared" if os.access(path, os.W_OK) else "read-only"
        return {"versions": versions, "cpus": os.cpu_count(), "gpus": gpus, "folders": seen}

    return looked


def checkup(folders: list[Folder], ray=None, nodes: dict[str, str] | None = None) -> Iterator[tuple[str, bool]]:
    """Lines about the nodes and about the folders, and whether each is bad news. Without Ray, of this machine alone."""
    marks, unwritable = {}, {}
    with contextlib.ExitStack() as stack:
        for folder in folders:
            try:
                if folder.must or folder.path.is_dir():
                    marks[folder.name] = str(stack.enter_context(marker(folder.path)))
            except OSError as error:
                unwritable[folder.name] = error.strerror or str(error)
        asked = {f.name: (str(f.path), marks.get(f.name, "")) for f in folders}
        here = look()(asked)
        found = dict(ask(ray, nodes, look(), asked)) if ray else {"this machine": here}
        free = {name: shutil.disk_usage(Path(mark).parent).free for name, mark in marks.items()}
    for node, answer in found.items():
        yield _of_node(node, answer, here["versions"])
    answers = {node: answer["folders"] for node, answer in found.items() if not isinstance(answer, str)}
    for folder in folders:
        seen = {node: folders[folder.name] for node, folders in answers.items()}
        line, bad = _of_folder(folder, seen, unwritable.get(folder.name))
        more = f", {free[folder.name] / 1e9:,.1f} GB free" if folder.name in free else ""
        yield f"{folder.name} {folder.path}: {line}{more}", bad


def _of_node(node: str, answer: dict | str, here: dict[str, str]) -> tuple[str, bool]:
    if isinstance(answer, str):
        return f"node {node}: {answer}", True
    other = [f"{name} {there} (here {here[name]})" for name, there in answer["versions"].items() if there != here[name]]
    gpus = "; ".join(answer["gpus"]) or "none"
    versions = f"; other versions: {', '.join(other)}" if other else ""
    return f"node {node}: {answer['cpus']} CPUs; GPUs: {gpus}{versions}", bool(other)


def _of_folder(folder: Folder, seen: dict[str, str], unwritable: str | None) -> tuple[str, bool]:
    """seen: what each node sees of it. unwritable: why it cannot be written here."""
    at_all = f"all {len(seen)} nodes" if len(seen) > 1 else "this machine"
    if folder.must:
        wrong = [node for node, what in seen.items() if what != "shared"]
        if unwritable:
            return f"cannot be written here: {unwritable}", True
        if wrong:
            return f"NOT seen, or not to be written, by {_names(wrong)}: {REMEDY}", True
        return f"seen and written by {at_all}", False
    absent = [node for node, what in seen.items() if what == "absent"]
    if absent:
        return (f"NOT there on {_names(absent)}: {REMEDY}", True) if absent != list(seen) else ("not there", False)
    own = [node for node, what in seen.items() if what == "other"]
    if own and len(seen) > 1:
        return f"of {_names(own)}'s own, or read-only: a run compares fingerprints", False
    return f"seen by {at_all}", False


def _names(nodes: list[str]) -> str:
    return ", ".join(nodes)
