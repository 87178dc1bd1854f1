"""`kdray doctor`"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from .arguments import Address


def doctor(
    num_workers: Annotated[
        int, typer.Option("--num-workers", min=0, help="Workers to start for the trial of Ray; 0 leaves Ray out.")
    ] = 2,
    address: Address = None,
) -> None:
    """Check this machine and the cluster: versions, processors, plugins, a group of Ray workers that add up numbers,
    and whether every node sees the folders of runs, caches and data.

    Standard output is a block to paste into a bug report. The exit code is 3 when a plugin is broken, 1 when the
    workers fail, and 2 when the nodes differ or do not share their storage.

    Examples:

        kdray doctor

        kdray doctor --address auto --num-workers 8 > report.md
    """
    from ..errors import KdrayError

    problems: list[KdrayError] = []
    typer.echo("```text")
    try:
        for check in (_machine, _plugins, lambda: _workers(num_workers, address)):
            try:
                for line in check():
                    typer.echo(line)
            except KdrayError as error:
                problems.append(error)
                typer.echo(f"PROBLEM: {error}")
        if not problems:
            typer.echo("all is well")
    finally:
        typer.echo("```")
    if problems:
        raise problems[0]


def _machine() -> Iterator[str]:
    import torch

    from ..config.project import find_project
    from ..run.folder import environment

    found, project = environment([]), find_project()
    yield f"python {found['python']} on {found['platform']}"
    yield "  ".join(f"{name} {version or 'absent'}" for name, version in found["packages"].items())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else found["cpus"]
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    gpus = ", ".join(found["gpus"]) or "none"
    yield f"CPUs {usable}, torch threads {torch.get_num_threads()}; torch with {cuda} sees GPUs: {gpus}"
    yield f"kdray.toml: {project.file or 'none'}"


def _plugins() -> Iterator[str]:
    from ..errors import PluginError
    from ..registry import Registry

    registry = Registry.default()
    broken = registry.host.failed
    yield f"plugins: {len(registry.host.plugins)} loaded or found, {len(broken)} broken"
    yield from (f"  {plugin}: {plugin.error}" for plugin in broken)
    if broken:
        raise PluginError("some plugins are broken: see `kdray plugins`")


def _workers(number: int, address: str | None) -> Iterator[str]:
    """The nodes and their storage; then so many workers on them."""
    from ..config.project import find_project
    from ..config.schema import ScaleConfig
    from ..errors import ConfigError
    from ..launch.checkup import Folder, checkup
    from ..launch.session import RaySession
    from ..launch.trial import all_reduce

    project, began, bad = find_project(), time.monotonic(), []
    folders = [Folder("runs", project.runs, True), Folder("cache", project.cache, True)]
    folders.append(Folder("data", project.data, False))
    if number:
        typer.echo(f"starting Ray and {number} workers", err=True)
    with RaySession(address or project.ray_address) if number else contextlib.nullcontext() as session:
        cluster = (session.ray, session.addresses()) if session else ()
        for line, is_bad in checkup(folders, *cluster):
            bad += [line] if is_bad else []
            yield line
        if session:
            sums = all_reduce(session, ScaleConfig(num_workers=number), lambda line: typer.echo(line, err=True))
            yield (
                f"Ray: {number} workers added up over {sums['backend']}: ok; {time.monotonic() - began:.1f} s in all, "
                f"{sums['bandwidth'] / 1e6:,.0f} MB/s all-reduce"
            )
    if bad:
        raise ConfigError("the cluster is not in order: " + "; ".join(bad))
