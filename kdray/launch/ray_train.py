"""A group of Ray Train workers around the training loop.

Ray carries the workers and starts them again when one is lost. Checkpoints, metrics and the decision where to go on
are kdray's own: they are in the run folder, so nothing is reported to Ray.
"""

from __future__ import annotations

import gc
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ..errors import KdrayError, RunFailed, Stopped
from ..run.asking import CHECKPOINT, ask, has_stopped
from .groups import sweep_own
from .lookout import Lookout
from .session import RaySession, resources
from .worker import Assignment, as_error, failures, final_failure, work

JOINED_STARTS = 11
"""How often Ray tries to start a group, a minute each, where a lost node may be replaced or others hold its room."""


def _train_fn(config: dict) -> None:
    import ray.train
    import ray.train.torch

    from ..engine.context import Context

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    assignment = config["assignment"]
    try:
        work(assignment, Context(context.get_world_rank(), context.get_world_size(), device))
    except Exception as error:
        _let_go_of_peers(error)
        if not _fails_for_good(assignment.job.folder):
            raise  # Ray starts the group again
        # A worker that returns does not count as lost: the driver reads the failure from the run folder, without a
        # restart in between.


def _let_go_of_peers(error: Exception) -> None:
    """Close the connections to the other workers, who may be waiting for this one in a collective operation."""
    import torch.distributed as dist

    while error is not None:  # frames of the traceback hold the process group
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def _fails_for_good(folder: Path, patience: float = 3.0) -> bool:
    """Whether any worker has written a failure that would happen again; the one who did may be writing it just now."""
    until = time.monotonic() + patience
    while not final_failure(folder):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


class Lost(RunFailed):
    """Workers were lost more often than is allowed, or could not be started."""


def run_on_ray(
    session: RaySession,
    assignment: Assignment,
    num_workers: int,
    cpus: float,
    use_gpu: bool,
    max_failures: int,
    say: Callable[[str], None] = lambda line: None,
    enough: Callable[[], bool] | None = None,
) -> bool:
    """Whether the training has ended; False where `enough`, asked a few times a second, has ended the group before.

    Raises the worker's own error, Lost when workers were lost more often than `max_failures`, or Stopped. With
    `enough`, room is the caller's business: it is not waited for."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    folder = assignment.job.folder
    scratch, each = folder / ".ray", resources(cpus, use_gpu)
    starts = 1 if enough else JOINED_STARTS if session.joined else 2
    trainer = _trainer_class()(
        _train_fn,
        train_loop_config={"assignment": assignment},
        torch_config=TorchConfig(
            timeout_s=int(assignment.job.config.scale.hang_after) + 120
        ),  # the watchdog knows more
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=each),
        run_config=RunConfig(
            name="group",
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=starts - 1),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    lookout = Lookout(session, 0 if enough else num_workers, each, say) if session.joined else None
    outcome: list[BaseException | None] = []

    def fit():
        try:
            trainer.fit()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    # In a thread of its own: Ray replaces the main thread's SIGINT handler, and Ctrl-C is ours.
    thread = threading.Thread(target=fit, name="kdray-fit", daemon=True)
    thread.start()
    ended_early = False
    try:
        while thread.is_alive() and not _overdue(folder) and not (ended_early := bool(enough and enough())):
            thread.join(0.2)
            if lookout and lookout.look():
                ask(folder, CHECKPOINT)
    finally:
        sweep_own()
        shutil.rmtree(scratch, ignore_errors=True)
    if final := final_failure(folder):
        raise as_error(final)
    if has_stopped(folder):
        raise Stopped("stopped, with a checkpoint")
    if ended_early:
        thread.join(60)  # until Ray has found that the workers are gone
        return False
    for cause in getattr(outcome[0], "worker_failures", {}).values():
        if isinstance(cause, KdrayError):  # of a worker that could not write into the run folder
            raise cause
    if isinstance(getattr(outcome[0], "controller_failure", None), WorkerGroupStartupTimeoutError):
        raise Lost(
            f"Ray could not start {num_workers} workers of {each['CPU']:g} CPU{'s' if each['CPU'] != 1 else ''} in "
            f"{starts} attempt{'s' if starts > 1 else ''}: somebody else holds what they need, or it vanished. "
            "`kdray resume` goes on later."
        ) from outcome[0]
    if outcome[0] is not None:
        raise Lost(_lost(outcome[0], failures(folder), max_failures)) from outcome[0]
    return True


def _overdue(folder: Path, patience: float = 15.0) -> bool:
    """Whether a final failure has been there for a while and the workers have not ended: one may wait for a lost peer
    inside a GPU kernel. Taking their placement group away ends them."""
    files = (folder / "failures").glob("rank-*.json")
    return bool(final_failure(folder)) and time.time() - min(file.stat().st_mtime for file in files) > patience


def _lost(error: BaseException, echoes: list[dict], max_failures: int) -> str:
    last = next(
        (line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__
    ).strip()
    seen = f" Another worker saw: {echoes[0]['message'].splitlines()[0]}." if echoes and echoes[0]["message"] else ""
    return (
        f"workers were lost more often than scale.max_failures ({max_failures}) allows. Ray says: {last}.{seen} "
        "A worker that vanishes was killed, often for memory. `kdray resume` goes on from the last checkpoint."
    )


NEEDLESS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
"""Parts of Ray's trainer that start an actor each. The first waits, detached, for the controller's death, and never
ends where Ray has no dashboard; `sweep_own` does its work. The second hands out Ray's data sets, of which there are
none here, and is a process that imports Ray Data."""


def _trainer_class():
    """Ray's, without what is needless."""
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self):
            found = super()._create_default_callbacks()
            return [callback for callback in found if type(callback).__name__ not in NEEDLESS]

    return Trainer
