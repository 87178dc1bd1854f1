"""Accuracy of a file of weights, in this process."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config.schema import Config, LossConfig, StudentConfig
from ..data.feed import Feed
from ..data.normalize import Normalize
from ..engine.build import build
from ..engine.context import Context
from ..engine.evaluate import evaluate
from ..errors import ConfigError
from ..registry import Registry


def measure(
    config: Config, registry: Registry, data_root: Path, weights: str, role: str, split: str
) -> dict[str, float]:
    """top1, top5, loss, samples of `weights` as the student or the teacher of `config`."""
    network = getattr(config, role)
    if network is None:
        raise ConfigError("this config has no teacher")
    own = network.normalize if role == "teacher" else None
    keys = {key: getattr(network, key) for key in ("model", "layers")}
    student = StudentConfig(**keys, weights=None, checkpoint=weights, **network.options)
    alone = config.model_copy(update={"student": student, "teacher": None, "losses": {"ce": LossConfig()}})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = build(alone, registry, data_root, None, device)
    chosen = getattr(parts.data, split)
    if chosen is None:
        raise ConfigError("this config holds no validation split out: set data.validation")
    normalize = Normalize(own.mean, own.std) if own else parts.normalize
    feed = Feed(chosen, parts.data.evaluate, config.data.threads, device)
    parts.student.eval()
    with torch.no_grad():
        return evaluate(
            lambda x: parts.precision.run(parts.student, normalize(x, parts.precision.dtype)).logits,
            chosen,
            feed,
            Context(device=device),
        )
