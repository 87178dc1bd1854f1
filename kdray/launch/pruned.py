"""A run that begins with a pruned network keeps it in its own folder: the trained one may be gone tomorrow."""

from __future__ import annotations

from pathlib import Path

from ..config.schema import Config
from ..engine.build import Parts
from ..engine.checkpoint import replace_safetensors
from ..models.checkpoint import tensors_digest
from ..run.plan import count

FILE = "pruned.safetensors"
"""Of the run's folder: the weights that it begins with."""


def keeps_pruned(config: Config, folder: Path) -> bool:
    """Whether a run of `config` in `folder` has such a file to write."""
    student = config.student
    return bool(student.prune or (student.pruned and student.checkpoint and Path(student.checkpoint) != folder / FILE))


def settled(config: Config, parts: Parts, checkpoint: str) -> Config:
    """With the widths that pruning left in the place of `prune`, so that nothing is pruned again, on workers or at
    resume; and `checkpoint` for the weights. parts: built of `config`."""
    pruned = parts.pruned.model_copy(update={"weights": tensors_digest(parts.student.model.state_dict())})
    changed = {"prune": None, "pruned": pruned, "weights": None, "checkpoint": checkpoint}
    return config.model_copy(update={"student": config.student.model_copy(update=changed)})


def write(parts: Parts, folder: Path) -> None:
    replace_safetensors(parts.student.model.state_dict(), folder / FILE)


def told(parts: Parts) -> str:
    of, left = parts.pruned, count(parts.student.model)
    return f"student: {of.share:.0%} of the channels of {of.source} are taken out, {left:,} parameters are left"
