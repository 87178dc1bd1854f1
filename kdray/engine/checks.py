"""What is looked at again and again, so that a run does not go on into nonsense."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config.schema import Config
from ..data.build import Data
from ..errors import ConfigError, MismatchError, PluginError, RunFailed
from .context import Context
from .objective import Objective
from .shares import in_shares

SHOWN = 10
"""Samples of a batch that a message names."""


def not_finite(
    lost: list[str], terms: list[str], epoch: int, step: int, samples: list[int], skipped: int = 0
) -> RunFailed:
    """To be raised before a network that is lost replaces a good checkpoint. lost: those of the `terms` that were not
    finite at `step` (`Step.number`), the first such; the others follow at the next, through the student's weights.
    epoch: counted from 1. samples: of the step's global batch, their places in the data set. skipped: so many batches
    in a row were left out, this the last of them."""
    names, others = " and ".join(lost), " and ".join(name for name in terms if name not in lost)
    what = f"{names} is not a finite number" if len(lost) == 1 else f"{names} are not finite numbers"
    when = f", before {others}" if others else ", all at once, as when the student's weights are" if lost[1:] else ""
    shown = ", ".join(map(str, samples[:SHOWN])) + (f", … ({len(samples)} in all)" if samples[SHOWN:] else "")
    left_out = f"{skipped} batches in a row had to be left out; in the last of them " if skipped else ""
    return RunFailed(
        f"{left_out}{what} any more in epoch {epoch}, at step {step}{when}: "
        f"{f'look at what {names} computes, ' if others else ''}lower "
        "optimizer.lr, set engine.clip_norm, or use engine.precision fp32. The last checkpoint is from before. "
        f"The samples of that step: {shown}.",
        terms=lost,
        epoch=epoch,
        step=step,
        samples=samples,
    )


def finite_gradients(parameters: list[nn.Parameter], context: Context) -> bool:
    """For every worker. The device is waited for."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    own = [g.to_local() if in_shares(g) else g for g in gradients]
    lost = (
        torch.stack([~g.isfinite().all() for g in own]).any().int() if own else torch.zeros((), device=context.device)
    )
    return not context.sum(lost).item()


def check_replicas(objective: Objective, context: Context) -> None:
    """Raises PluginError when a loss holds other buffers on another worker: it wrote what it had not gathered."""
    if context.world_size == 1:
        return
    for label, distiller in objective.by_label():
        # Statistics of batch norms are the engine's business: `batch_norm: local` lets them differ.
        norms = [module for module in distiller.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        of_norms = {id(buffer) for norm in norms for buffer in norm.buffers()}
        for name, buffer in distiller.named_buffers():
            if id(buffer) in of_norms:
                continue
            mine = _checksum(buffer).view(1)
            if len(context.gather(mine, [1] * context.world_size).unique()) > 1:
                raise PluginError(
                    f"loss '{label}' ({type(distiller).__name__}): its buffer {name} differs between workers. Buffers "
                    "must be written from gathered values (step.gather) and from step.generator only."
                )


def _checksum(x: Tensor) -> Tensor:
    """A number that follows from the bits of x and their places; taken in pieces, since a bank may be large."""
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for number, piece in enumerate(x.detach().flatten().contiguous().view(torch.uint8).split(1 << 22)):
        weight = torch.arange(1, len(piece) + 1, device=x.device) % 65521 + number
        total += (piece * weight).sum()
    return total


def check_same_data(data: Data, expected: str) -> None:
    """Raises MismatchError when these are not the pictures that the run began with."""
    if data.fingerprint() != expected:
        raise MismatchError(
            f"the data set {data.name} is not the one that this run began with (fingerprint {data.fingerprint()[:12]}, "
            f"then {expected[:12]}): give it the same files (data.path), or start a new run"
        )


def check_last_batch(config: Config, samples: int, workers: int) -> None:
    """Raises ConfigError when the rest of an epoch would leave a worker without a sample."""
    rest = samples % config.data.batch_size
    if config.data.last_batch == "keep" and 0 < rest < workers:
        raise ConfigError(
            f"{samples} training samples in batches of {config.data.batch_size} leave {rest} in an epoch's last batch, "
            f"fewer than the {workers} workers: use data.last_batch=drop, another data.batch_size, "
            f"or --num-workers {rest}"
        )
