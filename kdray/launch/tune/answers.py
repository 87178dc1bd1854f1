"""Whether all trials can share what the teachers answer, computed once; else why not."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...config.schema import CacheConfig, Config
from ...data.feed import Feed
from ...engine.build import Parts
from ...engine.context import Context
from ...engine.evaluate import evaluate
from ...errors import ConfigError
from ..precompute import Precompute


def why_live(config: Config, parts: Parts) -> list[str]:
    """A line for each reason why the trials ask a live teacher."""
    if not config.all_teachers:
        return []
    if moving := [path for path in config.tune.space if _moves_answers(path)]:
        return [f"{', '.join(moving)} changes what the teacher is asked: its answers cannot be shared, it is live"]
    beyond = {name: parts.needs[name].beyond for name in config.all_teachers if parts.needs[name].beyond}
    return [
        f"{name} is live in the trials: losses.{label} reads its {' and '.join(outputs)}, which no cache holds"
        for name, of_losses in beyond.items()
        for label, outputs in of_losses.items()
    ]


def served(config: Config, parts: Parts) -> set[str]:
    """The teachers whose answers all trials can share."""
    if any(map(_moves_answers, config.tune.space)):
        return set()
    return {name for name in config.all_teachers if not parts.needs[name].beyond}


def with_caches(config: Config, names: set[str]) -> Config:
    """`config` with a cache for these teachers, and for no other."""
    changed = {}
    for name, section in config.all_teachers.items():
        cache = (section.cache or CacheConfig()).model_copy(update={"fill": False})
        changed[name] = section.model_copy(update={"cache": cache if name in names else None})
    return config.model_copy(update={"teacher": changed["teacher"]} if config.teacher else {"teachers": changed})


def too_large(precompute: Precompute, config: Config, parts: Parts, folder: Path) -> str:
    """Why the answers are not stored; "" where they can be."""
    plans = [work.plan for work in precompute.works(config, parts)]
    wanted = sum(plan.bytes_a_picture * plan.missing for plan in plans if "://" not in plan.store.cache.where)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if wanted <= free / 2:
        return ""
    return f"the teacher's answers would take {wanted / 1e9:,.1f} GB of the {free / 1e9:,.1f} GB free: it is live"


def check_accuracies(config: Config, parts: Parts) -> None:
    """Raises ConfigError for a teacher below its min_accuracy. Trials do not look: they have no test set."""
    for name, section in config.all_teachers.items():
        if section.min_accuracy is not None:
            teacher = parts.teachers.by_name[name]
            feed = Feed(parts.data.test, parts.data.evaluate, config.data.threads, parts.device)
            top1 = evaluate(lambda x, ask=teacher: ask(x).logits, parts.data.test, feed, Context())["top1"]
            if top1 < section.min_accuracy:
                raise ConfigError(
                    f"{name}: its accuracy on the test set is {top1:.2%}, below its min_accuracy "
                    f"({section.min_accuracy:.2%})"
                )


def _moves_answers(path: str) -> bool:
    """Whether other values at a path ask the teacher about other pictures, or make it another teacher."""
    section, _, key = path.partition(".")
    return (
        section in ("seed", "teacher", "teachers")
        or (section == "data" and key != "batch_size")
        or path in ("schedule", "schedule.epochs", "engine", "engine.precision", "losses")
        or (section == "losses" and key.rpartition(".")[2] in ("use", "teacher"))
        or (section == "losses" and "." not in key)
    )
