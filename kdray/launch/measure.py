"""A file of weights as a network again, and its accuracy, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config.schema import Config, LossConfig, StudentConfig
from ..data.build import Data, Split
from ..data.feed import Feed
from ..data.normalize import Normalize
from ..distiller import Distiller
from ..engine.build import Parts, build
from ..engine.context import Context
from ..engine.evaluate import evaluate
from ..errors import ConfigError
from ..models.checkpoint import load_weights
from ..registry import Registry


@dataclass
class Rebuilt:
    """A network of a config with weights from a file. network: normalised pictures to logits."""

    network: nn.Module
    normalize: Normalize
    parts: Parts
    threads: int
    """That decode pictures."""

    def logits(self, pictures: Tensor) -> Tensor:
        """Of uint8 pictures (B, C, H, W), in the config's arithmetic."""
        precision = self.parts.precision
        return precision.run(self.network, self.normalize(pictures, precision.dtype))


def this_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen(data: Data, split: str) -> Split:
    """The split of that name. Raises ConfigError where there is none."""
    if (found := getattr(data, split)) is None:
        raise ConfigError("this config holds no validation split out: set data.validation")
    return found


@torch.no_grad()
def accuracy(found: Rebuilt, split: Split) -> dict[str, float]:
    """top1, top5, loss, samples. The answers are not kept, however many there are."""
    feed = Feed(split, found.parts.data.evaluate, found.threads, found.parts.device)
    return evaluate(found.logits, split, feed, Context(device=found.parts.device))


def rebuild(
    config: Config,
    registry: Registry,
    data_root: Path,
    weights: str,
    role: str,
    device: torch.device,
    data: Data | None = None,
) -> Rebuilt:
    """`weights` as the student of `config` or as its teacher of the name `role`, to be evaluated. data: where it has
    been loaded already."""
    losses, teachers, network, own = config.losses, config.all_teachers, config.student, None
    if role != "student":
        if role not in teachers:
            has = f"it has {', '.join(teachers)}" if teachers else "it has none"
            raise ConfigError(f"this config has no teacher '{role}': {has}")
        losses, network, own = {}, teachers[role], teachers[role].normalize
    # What the losses make of a student is what is measured, where one gives it another head; else they do not matter.
    classes = {label: registry.get("distillers", loss.use or label).cls for label, loss in losses.items()}
    heads = {label: losses[label] for label, cls in classes.items() if cls.deployed is not Distiller.deployed}
    named = {of for label in heads for of in _teachers_of(losses[label], classes[label], teachers)}
    views = {name for label in heads for name in classes[label].requires.views}
    keys = {key: getattr(network, key) for key in ("model", "layers", "pruned")}
    keys["int8"] = role == "student" and network.int8
    untrained = {
        name: t.model_copy(update={"weights": None, "checkpoint": None, "cache": None})
        for name, t in teachers.items()
        if name in named
    }
    alone = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"extra_views": {k: v for k, v in config.data.extra_views.items() if k in views}}
            ),
            "student": StudentConfig(**keys, weights=None, checkpoint=None, **network.options),
            "teacher": None,
            "teachers": untrained,
            "losses": heads or {"ce": LossConfig()},
        }
    )
    parts = build(alone, registry, data_root, {}, device, data=data)
    student = parts.objective.deployed()
    load_weights(student, weights)
    student.eval()
    return Rebuilt(student, Normalize(own.mean, own.std) if own else parts.normalize, parts, config.data.threads)


def _teachers_of(loss: LossConfig, cls: type[Distiller], teachers: dict) -> set[str]:
    """The names of the teachers that a loss learns from."""
    if not cls.requires.teacher:
        return set()
    return {loss.teacher} if loss.teacher in teachers else set(teachers)
