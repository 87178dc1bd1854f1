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
from ..engine.evaluate import together
from ..errors import ConfigError
from ..launch.measure import Rebuilt, rebuild, this_device
from ..registry import Registry
from ..run.folder import RunFolder
from .finished import Finished
from .inside import Inside, look


@dataclass(frozen=True)
class Answers:
    """Logits (N, C) of the test set, and of the validation split where there is one; and what lies before them."""

    test: Tensor
    validation: Tensor | None
    inside: Inside


def own_data(run: RunFolder, config: Config, registry: Registry, data_root: Path) -> Data:
    """The data of a run. Raises ConfigError where they cannot be had, or are others."""
    # Streamed: of the training pictures hardly any is looked at.
    section = config.data.model_copy(update={"in_memory": False})
    data = load_data(section, config.seed, registry, data_root)
    if data.fingerprint() != run.data:
        raise ConfigError("the pictures are others than those that the run began with")
    return data


@torch.no_grad()
def logits_of(found: Rebuilt, split: Split, weights: Path) -> Tensor:
    """(N, C), fp32 on the CPU. Raises ConfigError where they are no numbers; weights: the file that is then named."""
    device = found.parts.device
    feed = Feed(split, found.parts.data.evaluate, found.threads, device)
    positions = torch.arange(len(split)).split(together(device))
    logits = torch.cat([found.logits(pictures).float().cpu() for pictures in feed.batches(positions, view=0)])
    if not logits.isfinite().all():
        raise ConfigError(f"{weights}: some logits of this network are no finite numbers")
    return logits


@dataclass
class Networks:
    """Asks each network once, whatever number of runs it belongs to."""

    registry: Registry
    data_root: Path
    known: dict[tuple, Answers] = field(default_factory=dict)
    macs: dict[Path, int] = field(default_factory=dict)
    """By file of weights: multiply-accumulates that one picture takes."""

    def __post_init__(self):
        self.device = this_device()

    def data(self, of: Finished) -> Data:
        """The data of a run. Raises ConfigError where they cannot be had, or are others."""
        return own_data(of.run, of.config, self.registry, self.data_root)

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
            test, held_out = (logits_of(found, split, weights) if split else None for split in (data.test, validation))
            self.known[key] = Answers(test, held_out, look(found, data.test))
            self.macs[weights] = self._macs(found)
        return self.known[key]

    @torch.no_grad()
    def _macs(self, found: Rebuilt) -> int:
        data = found.parts.data
        picture = next(iter(Feed(data.test, data.evaluate, 1, self.device).batches([torch.tensor([0])], view=0)))
        with FlopCounterMode(display=False) as counter:
            found.logits(picture)
        return counter.get_total_flops() // 2
