"""Pictures of another data set than a network was trained on: their classes are matched by name."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ..errors import ConfigError
from .augment import Pipeline
from .build import Data, Split, few
from .source import Source, size_of


def with_test_set(own: Data, name: str, source: Source, evaluate: Pipeline) -> Data:
    """`own`, the data of a network, with `source` of the data set `name` as its test set, in the network's classes.

    evaluate: what is done to those pictures. Raises ConfigError where they have a class that the network does not know,
    or another size or number of channels than the pictures that it knows."""
    _refuse_others(own, name, source, evaluate)
    labelled = copy.copy(source)
    labelled.class_names = own.train.source.class_names
    labelled.labels = _order(own, name, source)[source.labels]
    return replace(own, test=Split(labelled, torch.arange(len(source))), evaluate=evaluate)


def _order(own: Data, name: str, source: Source) -> torch.Tensor:
    """The network's class of each class of `source`."""
    known, given = own.train.source.class_names, source.class_names
    if known == given:
        return torch.arange(len(given))
    strange = [one for one in given if one not in known]
    twice = len(set(known)) < len(known) or len(set(given)) < len(given)
    if strange or twice:
        why = (
            f"{len(strange)} of its classes the network does not know: {few(strange)}"
            if strange
            else "names occur twice, and the two lists differ"
        )
        raise ConfigError(
            f"the classes of {name} are others than those of {own.name}, and are matched by name: {why}.\n"
            f"  {own.name}: {few(known)}\n"
            f"  {name}: {few(given)}\n"
            "Name the classes of the new data as the network's, and leave out those that it does not know"
        )
    return torch.tensor([known.index(one) for one in given])


def _refuse_others(own: Data, name: str, source: Source, evaluate: Pipeline) -> None:
    if source.channels != own.channels:
        raise ConfigError(
            f"{name} has pictures of {source.channels} channel{'s' if source.channels > 1 else ''}, and {own.name}, "
            f"which the network was trained on, of {own.channels}: data.channels={own.channels}, where that data set "
            "has this option"
        )
    first = torch.tensor([0])
    (ours,) = own.evaluate.read(own.test.source, own.test.ids[:1], 0)
    (theirs,) = evaluate.read(source, first, 0)
    if ours.shape != theirs.shape:
        side = min(ours.shape[-2:])
        raise ConfigError(
            f"{name} has pictures of {size_of(theirs)}, and {own.name}, which the network was trained on, of "
            f"{size_of(ours)}. Bring them to that size: "
            f"'data.evaluate=[{{resize: {{size: {side}}}}}, {{center_crop: {{size: {side}}}}}]'"
        )
