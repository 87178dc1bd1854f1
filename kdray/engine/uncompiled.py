"""torch's compiler, left out where nothing is compiled: torch's optimizers and DistributedDataParallel import it only
to ask it something, or to tell it what to leave alone, and that takes two seconds of each process's start."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def leave_alone(*methods: Callable) -> None:
    """They run as they are from now on, without a word to the compiler."""
    for method in methods:
        inner = inspect.unwrap(method)
        setattr(inner, "__dynamo_disable", inner)


def distributed(module: nn.Module, **settings) -> DistributedDataParallel:
    """DistributedDataParallel, around what is not compiled."""
    leave_alone(DistributedDataParallel._inside_ddp_forward)
    if "torch._dynamo" not in sys.modules:
        torch._dynamo = SimpleNamespace(utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer"))
        try:
            return DistributedDataParallel(module, **settings)
        except AttributeError:
            pass  # another version of torch asks for more, and gets it
        finally:
            del torch._dynamo
    return DistributedDataParallel(module, **settings)
