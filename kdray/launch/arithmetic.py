"""`engine.precision: auto`: bf16 where the workers' processors have it, decided by a measurement before a run."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch
from torch import nn

from ..config.schema import Config
from .session import RaySession, resources, share_out

WORTH = 0.8
"""bf16 is taken where a step of it takes less than this share of its time in fp32."""
HAS, EMULATES = 0.0, math.inf


def decided(config: Config, address: str | None = None, say: Callable[[str], None] | None = None) -> Config:
    """`config` with an arithmetic in the place of `auto`: all of a run's workers and later commands keep to it.

    It is measured in this process, or, where `address` names a cluster, on one of its nodes, with what a worker would
    get. A config that asks for bf16 keeps it; where that is slower than fp32 this is said.
    """
    wanted = config.engine.precision
    if not (wanted == "auto" or (wanted == "bf16" and say)):
        return config
    share, where = _of_cluster(config, address) if address and config.scale.num_workers else _of_this(config)
    name = "bf16" if share < WORTH else "fp32"
    known = {HAS: f"{where} has bf16", EMULATES: f"{where} emulates bf16"}
    took = known.get(share, f"a convolution in bf16 takes {share:.2g} of its time in fp32 on {where}")
    say = say or (lambda text: None)
    if wanted == "auto":
        say(f"engine.precision auto: {name}: {took}")
        return config.model_copy(update={"engine": config.engine.model_copy(update={"precision": name})})
    if share > 1 / WORTH:
        say(f"warning: engine.precision bf16 is slow here: {took}. Take fp32, or auto")
    return config


def _of_this(config: Config) -> tuple[float, str]:
    if torch.cuda.is_available() and config.scale.use_gpu:
        return bf16_share("cuda"), "this GPU"
    return bf16_share("cpu"), "this processor"


def _of_cluster(config: Config, address: str) -> tuple[float, str]:
    with RaySession(address) as session:
        if not session.joined:
            return _of_this(config)
        cpus, use_gpu = share_out(config.scale, session.nodes())
        each = resources(cpus, use_gpu)
        ask = session.ray.remote(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0))(bf16_share.__wrapped__)
        device = "cuda" if use_gpu else "cpu"
        return session.ray.get(ask.remote(device)), "the GPUs of the cluster" if use_gpu else "a node of the cluster"


@functools.cache
def bf16_share(device: str) -> float:
    """Time of a small convolution, forward and backward, in bf16, as a share of that in fp32: a processor without bf16
    takes some 10 times as long. GPUs say themselves what they have: HAS or EMULATES."""
    if device == "cuda":
        return HAS if torch.cuda.is_bf16_supported(including_emulation=False) else EMULATES
    convolution = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(32, 64, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()

    def seconds(enabled: bool) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = convolution(x).sum()
        loss.backward()
        return time.perf_counter() - began

    for enabled in (True, False):
        seconds(enabled)  # kernels are made at their first call
    rounds = [(seconds(True), seconds(False)) for _ in range(3)]  # in turns, since other work comes and goes
    return min(bf16 for bf16, _ in rounds) / min(fp32 for _, fp32 in rounds)
