"""A group of Ray workers that adds up tensors, to see that starting and talking works."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from ..config.schema import ScaleConfig
from ..errors import RunFailed
from .session import RaySession, resources, share_out

NUMBERS = 1 << 20


def _train_fn() -> dict:
    import time

    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    x = torch.full((NUMBERS,), float(dist.get_rank() + 1), device=get_device())
    dist.all_reduce(x)
    expected = dist.get_world_size() * (dist.get_world_size() + 1) / 2
    if not bool((x == expected).all()):
        raise ArithmeticError(f"the workers' sum is {x[0].item()}, not {expected}")
    began = time.monotonic()
    for _ in range(5):
        dist.all_reduce(x)
        x /= dist.get_world_size()
    float(x[0])  # a device has done its work when it tells a number
    seconds = (time.monotonic() - began) / 5
    return {"backend": dist.get_backend(), "bandwidth": x.nbytes / seconds}


def all_reduce(session: RaySession, scale: ScaleConfig, say: Callable[[str], None]) -> dict:
    """The backend and the bandwidth (bytes a second) of an all-reduce over the workers. Where others have what the
    workers need, they are waited for, and it is said. Raises RunFailed when it does not work."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    cpus, use_gpu = share_out(scale, session.nodes())
    each = resources(cpus, use_gpu)
    session.wait_for_room(scale.num_workers * [each], say)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _train_fn,
            scaling_config=ScalingConfig(num_workers=scale.num_workers, use_gpu=use_gpu, resources_per_worker=each),
            run_config=RunConfig(
                name="doctor",
                storage_path=scratch,
                failure_config=FailureConfig(controller_failure_limit=0),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            return trainer.fit().return_value
        except Exception as error:
            raise RunFailed(f"a group of {scale.num_workers} Ray workers failed: {error}") from error
