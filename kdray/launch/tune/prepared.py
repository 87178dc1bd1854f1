"""A search as it is written down: a config with every setting of its search, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...config.dump import write
from ...config.load import digest, load_config, load_text
from ...config.schema import Config
from ...config.tune import TuneConfig
from ...errors import ConfigError
from ...registry import Registry
from ..arithmetic import decided

VALIDATION = 0.1
"""Share of the training set that is held out where the config holds none out."""


@dataclass(frozen=True)
class Prepared:
    """A search that is written out: the config with every setting of its search, as text and checked."""

    text: str
    config: Config
    notes: tuple[str, ...] = ()

    @property
    def tune(self) -> TuneConfig:
        return self.config.tune

    def identity(self) -> dict:
        """What may not change while it is searched."""
        settings = self.tune.model_dump(mode="json", exclude={"max_concurrent"})
        return {"config": digest(self.config), "tune": json.loads(json.dumps(settings))}


def prepare(path: Path, overrides: list[str], registry: Registry, address: str | None = None) -> Prepared:
    """Raises ConfigError for a space that does not fit its config, or none to be had."""
    loaded = load_config(path, overrides, registry=registry)
    tune, notes = loaded.config.tune or TuneConfig(), []
    settings = tune.model_dump(mode="json")
    given = dict(loaded.given)
    if not tune.space:
        settings["space"] = default_space(loaded.config, registry)
        notes.append(f"no tune.space is written; taken: {', '.join(settings['space'])}")
    if loaded.config.engine.precision == "auto":
        precision = decided(loaded.config, address, notes.append).engine.precision
        given["engine"] = {**given["engine"], "precision": precision}
    if not loaded.config.data.validation:
        given["data"] = {**given["data"], "validation": VALIDATION}
        notes.append(
            f"data.validation is 0: {VALIDATION:.0%} of the training set is held out, by which trials are compared"
        )
    text = write({**given, "tune": {k: v for k, v in settings.items() if v not in (None, [])}})
    return Prepared(text, load_text(text, str(path), registry).config, tuple(notes))


def default_space(config: Config, registry: Registry) -> dict[str, dict]:
    """What the losses of a config offer, and the learning rate over two decades."""
    space = {}
    for label, loss in config.losses.items():
        offered = registry.search_spaces.get(loss.use or label)
        for option, how in offered.space.items() if offered else ():
            if option != "weight" or isinstance(loss.weight, float):  # a weight that moves stays as it is
                space[f"losses.{label}.{option}"] = how
    lr = config.optimizer.lr
    if (config.tune or TuneConfig()).searcher == "grid":
        raise ConfigError("tune.searcher: a grid needs its values: write tune.space")
    return {**space, "optimizer.lr": {"loguniform": [lr / 10, lr * 10]}}


def most_epochs(config: Config) -> int:
    dimension = config.tune.space.get("schedule.epochs")
    return max(dimension.values) if dimension else config.schedule.epochs


def differences(a: dict, b: dict) -> list[str]:
    """What differs between two identities, in the words of a config."""
    found = [] if a["config"] == b["config"] else ["values outside of tune"]
    keys = a["tune"].keys() | b["tune"].keys()
    return found + sorted(f"tune.{key}" for key in keys if a["tune"].get(key) != b["tune"].get(key))
