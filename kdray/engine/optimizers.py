"""The optimizers at hand, through the same hook as a plugin's."""

from __future__ import annotations

import inspect
from functools import partial

from pydantic import Field

from ..hooks import hookimpl
from ..options import Options
from ..specs import OptimizerSpec


class SGDOptions(Options):
    lr: float = Field(gt=0, description="Base learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, on all parameters.")
    nesterov: bool = Field(False, description="Nesterov's momentum.")


class AdamWOptions(Options):
    lr: float = Field(gt=0, description="Base learning rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the gradient's average.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the squared gradient's average.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay, on all parameters.")


def sgd(parameters, options: SGDOptions):
    from torch.optim import SGD

    return _plain(
        SGD,
        parameters,
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
        fused=_whole(parameters) or None,
    )


def adamw(parameters, options: AdamWOptions):
    from torch.optim import AdamW

    betas = (options.beta1, options.beta2)
    fused = _whole(parameters) or None
    on_gpu = any(p.is_cuda for p in parameters if not isinstance(p, dict))
    return _plain(
        AdamW,
        parameters,
        lr=options.lr,
        betas=betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=fused,
        capturable=on_gpu,
    )


def _plain(kind, parameters, **settings):
    """An optimizer of torch's that is never compiled, and runs what they run when they have told the compiler that."""
    import torch

    from .uncompiled import leave_alone

    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    leave_alone(*(getattr(torch.optim.Optimizer, method) for method in methods))
    optimizer = kind(parameters, **settings)
    step = optimizer.profile_hook_step(torch.no_grad()(inspect.unwrap(kind.step)))
    optimizer.step = partial(step, optimizer)
    return optimizer


def _whole(parameters: list) -> bool:
    """Whether no parameter is in shares: those come in groups, and not every fused kernel takes them."""
    return not any(isinstance(p, dict) for p in parameters)


@hookimpl
def kdray_optimizers():
    return [
        OptimizerSpec("sgd", sgd, SGDOptions, "Stochastic gradient descent with momentum"),
        OptimizerSpec("adamw", adamw, AdamWOptions, "Adam with decoupled weight decay"),
    ]
