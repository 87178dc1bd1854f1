"""A mixed picture has two classes: a loss that has not said that it knows is not given one of them alone."""

from __future__ import annotations

from ..distiller import Batch, Distiller, Setup
from ..errors import ConfigError


def batch_for(label: str, distiller: Distiller, batch: Batch) -> Batch:
    """The batch as the loss `label` gets it. Of a mixed one, `target` is an error where it does not say `mixes`."""
    return batch if batch.share is None or distiller.mixes else _OneClassBatch(batch, label)


def setup_for(label: str, cls: type[Distiller], setup: Setup) -> Setup:
    """What a loss may know in a mixed run: `labels` are the same error, or it could look a picture's class up there."""
    return setup if cls.mixes else _OneClassSetup(setup, label)


class _OneClass:
    def __init__(self, given: Batch | Setup, label: str):
        vars(self).update(vars(given), label=label)

    def refuse(self, what: str):
        raise ConfigError(
            f"losses.{self.label} reads the class of a picture ({what}), and with data.mix a picture has two. Remove "
            "the loss, or data.mix. If the loss is yours: let it read batch.partner and batch.share too, and say "
            "`mixes = True` in its class"
        )


class _OneClassBatch(_OneClass, Batch):
    target = property(lambda self: self.refuse("batch.target"))


class _OneClassSetup(_OneClass, Setup):
    labels = property(lambda self: self.refuse("setup.labels"))
