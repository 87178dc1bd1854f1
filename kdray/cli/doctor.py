"""`kdray doctor`"""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from .arguments import Address


def doctor(
    num_workers: Annotated[
        int, typer.Option("--num-workers", min=0, help="Workers to start for the trial of Ray; 0 leaves Ray out.")
    ] = 2,
    address: Address = None,
) -> None:
    """Check this machine: versions, processors, plugins, and a group of Ray workers that add up a number.

    Paste the output into a bug report. The exit code is 3 when a plugin is broken.

    Example:

        kdray doctor --num-workers 2
    """
    import torch

    from ..config.project import find_project
    from ..config.schema import ScaleConfig
    from ..errors import PluginError
    from ..registry import Registry
    from ..run.folder import environment

    project, registry = find_project(), Registry.default()
    found = environment([])
    typer.echo(f"python {found['python']} on {found['platform']}")
    typer.echo("  ".join(f"{name} {version or 'absent'}" for name, version in found["packages"].items()))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else found["cpus"]
    typer.echo(f"CPUs {usable}, torch threads {torch.get_num_threads()}, GPUs: {', '.join(found['gpus']) or 'none'}")
    typer.echo(f"kdray.toml: {project.file or 'none'}; data {project.data}; runs {project.runs}")
    broken = registry.host.failed
    typer.echo(
        f"plugins: {len(registry.host.plugins)} loaded or found, {len(broken)} broken"
        + "".join(f"\n  {p}: {p.error}" for p in broken)
    )
    if num_workers:
        from ..launch.session import RaySession
        from ..launch.trial import all_reduce

        began = time.monotonic()
        with RaySession(address or project.ray_address) as session:
            seconds = all_reduce(session, ScaleConfig(num_workers=num_workers))
        typer.echo(
            f"Ray: {num_workers} workers added up over {seconds['backend']}: ok; "
            f"{time.monotonic() - began:.1f} s in all, "
            f"{seconds['bandwidth'] / 1e6:,.0f} MB/s all-reduce"
        )
    if broken:
        raise PluginError("some plugins are broken: see `kdray plugins`")
    typer.echo("all is well")
