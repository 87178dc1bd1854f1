"""The distiller that is checked."""

from __future__ import annotations

from functools import cached_property

from ..distiller import Distiller
from ..errors import ConfigError
from .rehearsal import Moment, Rehearsal, demand
from .scenes import PAIRS, scene


class Subject:
    """A distiller with its options, and what several checks ask of it."""

    def __init__(self, cls: type[Distiller], options: dict):
        self.cls, self.options = cls, options

    @cached_property
    def refusals(self) -> dict[str, str]:
        """Pair of networks to why the distiller does not fit it, in its own words; empty where it fits."""
        found = {}
        for pair in PAIRS:
            try:
                Rehearsal(self.cls, self.options, scene(pair)).step(0)
                found[pair] = ""
            except ConfigError as error:
                found[pair] = str(error) or "a ConfigError without a word"
        return found

    @property
    def pairs(self) -> list[str]:
        found = [pair for pair, why in self.refusals.items() if not why]
        reasons = "; ".join(f"{pair}: {why}" for pair, why in self.refusals.items())
        demand(found, f"it fits none of the made-up networks: {reasons}")
        return found

    def rehearsal(self, variant: str = "plain", pair: str = "", **how) -> Rehearsal:
        return Rehearsal(self.cls, self.options, scene(pair or self.pairs[0], variant), **how)

    @cached_property
    def moments(self) -> list[Moment]:
        """Of the whole rehearsal, in float64."""
        return self.rehearsal().run()
