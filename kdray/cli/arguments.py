"""Arguments that several verbs share."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path, typer.Argument(help="A config file, for instance configs/quickstart.yaml.", metavar="CONFIG")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values that replace those of the file: `losses.kd.temperature=2`.", metavar="[KEY=VALUE]..."),
]
NumWorkers = Annotated[
    str | None,
    typer.Option(
        "--num-workers",
        metavar="N | N..M",
        help="Ray Train workers; 0 runs in this process; 2..8: as many as there is room for. [scale.num_workers]",
    ),
]
CpusPerWorker = Annotated[
    float | None, typer.Option("--cpus-per-worker", help="CPUs a worker, fractions allowed. [scale.cpus_per_worker]")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Ray cluster to join, for instance auto. Default: kdray.toml, RAY_ADDRESS, else one here."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_flags(overrides: list[str] | None, **flags) -> list[str]:
    """Overrides with the flags that were given, as overrides of the same meaning; a flag wins."""
    given = {"num_workers": "scale.num_workers", "cpus_per_worker": "scale.cpus_per_worker", "name": "run.name"}
    return [
        *(overrides or []),
        *(f"{given[flag]}={_text(flag, value)}" for flag, value in flags.items() if value is not None),
    ]


def _text(flag: str, value) -> str:
    return value if flag == "num_workers" else json.dumps(value)


def command_line() -> str:
    return shlex.join(["kdray", *sys.argv[1:]])
