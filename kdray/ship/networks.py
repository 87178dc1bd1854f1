"""What the networks of runs say of the test set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..config.schema import Config
from ..data.build import Data, Split, load_data
from ..data.feed import Feed
from ..engine.evaluate import BATCH, BATCH_ON_GPU
from ..errors import ConfigError
from ..launch.measure import Rebuilt, rebuild
from ..registry import Registry
from .finished import Finished


@dataclass(frozen=True)
class Answers:
    """Logits (N, C) of the test set, and of the validation split where there is one."""

    test: Tensor
    validation: Tensor | None


@dataclass
class Networks:
    """Asks each network once, whatever number of runs it belongs to."""

    registry: Registry
    data_root: Path
    known: dict[tuple, Answers] = field(default_factory=dict)
    macs: dict[Path, int] = field(default_factory=dict)
    """By file of weights: multiply-accumulates that one picture takes."""

    def __post_init__(self):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def data(self, of: Finished) -> Data:
        """The data of a run. Raises ConfigError where they cannot be had, or are others."""
        # Streamed: of the training pictures hardly any is looked at.
        section = of.config.data.model_copy(update={"in_memory": False})
        data = load_data(section, of.config.seed, self.registry, self.data_root)
        if data.fingerprint() != of.run.data:
            raise ConfigError("the pictures are others than those that the run began with")
        return data

    def ask(self, of: Finished, weights: Path, role: str, data: Data) -> Answers:
        """role: "student", or the name of a teacher, which is not asked about the validation split. Raises ConfigError
        for weights that are not there, damaged, or of another network."""
        config = of.config
        validation = data.validation if role == "student" else None
        network = config.student if role == "student" else config.all_teachers[role]
        read = (network.model_dump_json(), config.data.model_dump_json(exclude={"extra_views"}))
        key = (weights.absolute(), *read, config.engine.precision, validation and config.seed)
        if key not in self.known:
            found = rebuild(config, self.registry, self.data_root, str(weights), role, self.device, data)
            test, held_out = (self._logits(found, split, config, weights) for split in (data.test, validation))
            self.known[key] = Answers(test, held_out)
            self.macs[weights] = self._macs(found)
        return self.known[key]

    @torch.no_grad()
    def _logits(self, found: Rebuilt, split: Split | None, config: Config, weights: Path) -> Tensor | None:
        if split is None:
            return None
        feed = Feed(split, found.parts.data.evaluate, config.data.threads, self.device)
        positions = torch.arange(len(split)).split(BATCH_ON_GPU if self.device.type == "cuda" else BATCH)
        logits = torch.cat([found.logits(pictures).float().cpu() for pictures in feed.batches(positions, view=0)])
        if not logits.isfinite().all():
            raise ConfigError(f"{weights}: some logits of this network are no finite numbers")
        return logits

    @torch.no_grad()
    def _macs(self, found: Rebuilt) -> int:
        data = found.parts.data
        picture = next(iter(Feed(data.test, data.evaluate, 1, self.device).batches([torch.tensor([0])], view=0)))
        with FlopCounterMode(display=False) as counter:
            found.logits(picture)
        return counter.get_total_flops() // 2
