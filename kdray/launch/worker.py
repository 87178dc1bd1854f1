"""What happens on a worker around the training loop, whoever started it: plugins are compared, threads set, failures
written down."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from ..blame import tail
from ..clock import running
from ..data.build import Data
from ..engine.train import Job
from ..errors import ConfigError, KdrayError, MismatchError, PluginError, RunFailed, Stopped
from ..run.asking import has_stopped
from ..run.folder import read_json, write_json
from ..run.forms import Failure
from ..teacher.storage import FULL
from .code import Code

# What a worker reports when another one is gone. It is not the cause, and the group may try again.
PEER_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|process group|peer", re.IGNORECASE
)


@dataclass(frozen=True)
class Assignment:
    """What the driver sends to each worker."""

    job: Job
    code: Code
    token: str = ""
    asked_in: tuple[Path, ...] = ()
    """Folders of the runs that wait for this one."""
    threads: int = 1


def work(assignment: Assignment, context) -> None:
    """Train as one worker. A failure is written to the run folder before it is raised, so that it is not lost on the
    way to the driver."""
    import torch

    from ..engine.train import train
    from ..run.metrics import FileLog
    from .watchdog import Watchdog

    folder = assignment.job.folder
    if final_failure(folder) or has_stopped(folder):
        return  # the group was restarted after a failure that would only happen again, or after the end
    try:
        if _token(folder) != assignment.token:
            raise ConfigError(
                f"worker {context.rank} on {socket.gethostname()} does not see the run folder {folder}: put it "
                "(run.dir, or [paths] runs in kdray.toml) on storage that every node shares"
            )
        torch.set_num_threads(assignment.threads)
        registry = assignment.code.load()
        write_json(folder / f"worker-{context.rank}.json", {"host": socket.gethostname(), "pid": os.getpid()})
        log = FileLog(folder, assignment.token, assignment.asked_in)
        with (
            running() if assignment.job.profile else contextlib.nullcontext(),
            Watchdog(folder, context.rank, context.world_size, assignment.job.config.scale.hang_after) as watchdog,
        ):
            train(assignment.job, registry, replace(context, alive=watchdog.alive), log)
    except Stopped:
        pass  # the driver reads it from the run folder
    except Exception as error:
        error = disk_is_full(error, folder) or error
        if _token(folder) == assignment.token:  # else the folder is not ours: another node's disk, or a resumed run's
            write_failure(folder, context.rank, error)
        raise error


def _token(folder: Path) -> str | None:
    try:
        return (folder / ".token").read_text()
    except OSError:
        return None


def train_here(job: Job, registry, context, log, data: Data | None = None) -> None:
    """Train in this process. data: where it has been loaded already. What is not kdray's own error is told as a failed
    worker would tell it: a plugin's or a bug."""
    from ..engine.train import train

    try:
        train(job, registry, context, log, data)
    except KdrayError as error:
        write_failure(job.folder, context.rank, error)
        raise
    except Exception as error:
        write_failure(job.folder, context.rank, error)
        if full := disk_is_full(error, job.folder):
            raise full from error
        raise RunFailed(f"the training failed:\n{tail(''.join(traceback.format_exception(error)))}") from error


def disk_is_full(error: BaseException, folder: Path) -> RunFailed | None:
    """What to tell of an OSError that means that nothing can be written any more."""
    if isinstance(error, OSError) and error.errno in FULL:
        return RunFailed(
            f"the run folder {folder} cannot be written any more: {error.strerror}. `kdray resume` goes on when it can"
        )
    return None


def write_failure(folder: Path, rank: int, error: Exception) -> None:
    lost = isinstance(error, ConnectionError | TimeoutError) or PEER_LOST.search(str(error))
    final = isinstance(error, KdrayError) or not lost
    lines = traceback.format_exception(error)
    try:
        (folder / "failures").mkdir(exist_ok=True)
        entry = {
            "rank": rank,
            "type": type(error).__name__,
            "message": str(error),
            "final": final,
            "traceback": "".join(lines),
            **getattr(error, "details", {}),
        }
        write_json(folder / "failures" / f"rank-{rank}.json", entry)
    except OSError:
        pass  # the error itself is raised; there is nowhere left to write


def failures(folder: Path) -> list[dict]:
    found = [read_json(file, Failure) for file in sorted((folder / "failures").glob("rank-*.json"))]
    return sorted(filter(None, found), key=lambda entry: not entry["final"])  # causes first, echoes after


def final_failure(folder: Path) -> dict | None:
    return next((entry for entry in failures(folder) if entry["final"]), None)


def as_error(entry: dict) -> KdrayError:
    """The exception that stands for a written failure: kdray's own as they were, others with the end of their
    traceback."""
    known = {cls.__name__: cls for cls in (ConfigError, MismatchError, PluginError, RunFailed)}
    if entry["type"] in known:
        return known[entry["type"]](entry["message"])
    return RunFailed(f"worker {entry['rank']} failed:\n{tail(entry['traceback'])}")
