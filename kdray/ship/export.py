"""`kdray export`: a run's student as a file that runs without kdray, put in place once it answers as the run does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..config.load import load_config
from ..config.schema import Config, StudentConfig
from ..data.feed import Feed
from ..errors import ConfigError, RunFailed
from ..launch.measure import Rebuilt, rebuild
from ..models.rounding import rounded_layers, without_rounding
from ..registry import Registry
from ..run.folder import RunFolder
from .deployable import Deployable
from .formats import FORMATS, Runs, name_facts
from .int8 import Ranges, quantise
from .versus import versus

COMPARED = 64
"""Test pictures that both are asked for."""
BATCHES = (1, 7, COMPARED)
"""Sizes of the batches that the file is tried with: the size is free."""
CLOSE = 1e-3
"""Largest difference of a logit, as a share of the largest logit: kernels add in another order, no more."""
CLOSE_ROUNDED = 0.05
"""The same of a student that rounds: a sum that is a trifle larger may be rounded to the next level."""


def export(
    run: RunFolder,
    name: str,
    output: Path | None,
    best: bool,
    registry: Registry,
    data_root: Path,
    int8: bool = False,
) -> dict:
    """Write the student in the format `name`, to `output` or into the run's folder `export`. Returns the facts, with
    `file`, `bytes`, and the largest `difference` of a logit that was seen. int8: weights and activations in 8 bits
    (onnx only); the facts have `versus` then, the file beside the one in fp32.

    Raises ConfigError where the student cannot be had in that format or the file not be written, RunFailed where the
    file answers otherwise.
    """
    format = FORMATS[name]
    if int8 and name != "onnx":
        raise ConfigError(f"int8 is written in the format onnx alone, not in {name}: docs/export.md says why")
    format.check(name)
    config, found = rebuilt(run, best, registry, data_root)
    if name == "pytorch" and found.network is not found.parts.student.model:
        raise ConfigError(
            "pytorch: a loss of this run gives its student another head, which the file could not name. Take "
            "--format torch.export or onnx, which hold the whole network"
        )
    network, pictures = found.network, test_pictures(found, config)
    if int8:  # the file is what rounds
        network, ranges = without_rounding(network)
    network = Deployable(network, found.normalize)
    facts = facts_of(run, config, found, pictures, best)
    kind = f"{'-best' if best else ''}{'-int8' if int8 else ''}"
    file = output or run.path / "export" / f"{run.name}{kind}{format.suffix}"
    if file.suffix != format.suffix:
        raise ConfigError(f"{file}: a file of the format {name} ends in {format.suffix}")
    with _part_of(file) as part:
        # An example of one picture would be taken for the only size of a batch.
        with torch.no_grad():
            format.write(network, pictures[:2], facts, part)
        difference = compare(network, format.read(part)[0], pictures)
        if int8:
            of_file = {f"network.{path}": range for path, range in ranges.items()}
            facts = _in_int8(part, facts, found, config, of_file)
        os.replace(part, file)
    return {**facts, "file": str(file), "format": name, "bytes": file.stat().st_size, "difference": difference}


@contextlib.contextmanager
def _part_of(file: Path) -> Iterator[Path]:
    """Where it is written first. Raises ConfigError where nothing can be."""
    part = file.with_name(f".writing-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        part.touch()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {error.strerror or error}. Choose another place with --output FILE"
        ) from error
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _in_int8(part: Path, facts: dict, found: Rebuilt, config: Config, ranges: Ranges) -> dict:
    """Put the file in int8 into the place of the one in fp32. Returns its facts."""
    onnx, data = FORMATS["onnx"], found.parts.data
    small = part.with_name(f"{part.name}.int8")
    try:
        calibrated_on = quantise(part, data, config, small, ranges)
        beside = versus({"fp32": (part, onnx.read(part)[0]), "int8": (small, onnx.read(small)[0])}, data, config)
        about = {"calibrated_on": calibrated_on, "trained_for": config.student.int8}
        facts = {**facts, "accuracy": beside["int8"]["accuracy"], "int8": about}
        name_facts(small, facts)
        beside["int8"]["bytes"] = small.stat().st_size
        os.replace(small, part)
    finally:
        small.unlink(missing_ok=True)
    return {**facts, "versus": beside}


def student_of(run: RunFolder, best: bool, registry: Registry, data_root: Path) -> tuple[Runs, dict]:
    """What an exported file would be read as."""
    config, found = rebuilt(run, best, registry, data_root)
    facts = facts_of(run, config, found, test_pictures(found, config), best)
    return Deployable(found.network, found.normalize), facts


def rebuilt(run: RunFolder, best: bool, registry: Registry, data_root: Path) -> tuple[Config, Rebuilt]:
    config = load_config(run.config_file, registry=registry).config
    weights = str(run.weights(best))
    return config, rebuild(config, registry, data_root, weights, "student", torch.device("cpu"))


def test_pictures(found: Rebuilt, config: Config) -> Tensor:
    """The first ones, uint8 (B, C, H, W), as evaluation sees them."""
    data = found.parts.data
    feed = Feed(data.test, data.evaluate, config.data.threads, torch.device("cpu"))
    return next(iter(feed.batches([torch.arange(min(COMPARED, len(data.test)))], view=0)))


def facts_of(run: RunFolder, config: Config, found: Rebuilt, pictures: Tensor, best: bool) -> dict:
    """What somebody needs who has the file alone."""
    summary = run.summary or {}
    accuracy = summary.get("best", {}).get("test_top1") if best else summary.get("last", {}).get("top1")
    student = config.student
    return {
        "kdray": __version__,
        "run": run.name,
        "network": {"model": student.model, **_changes(student), **student.options},
        "data": config.data.name,
        "classes": list(found.parts.data.test.source.class_names),
        "input": {"name": "pictures", "dtype": "uint8", "shape": ["batch", *pictures.shape[1:]]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", found.parts.data.num_classes]},
        "evaluate": config.data.model_dump(mode="json")["evaluate"],
        "accuracy": accuracy,
    }


def _changes(student: StudentConfig) -> dict:
    """What is left of a pruned network, and whether it rounds; nothing of others."""
    found = {"pruned": {"widths": student.pruned.widths}} if student.pruned else {}
    return {**found, "int8": True} if student.int8 else found


@torch.no_grad()
def compare(network: nn.Module, runs: Runs, pictures: Tensor) -> float:
    """The largest difference of a logit, in batches of several sizes. Raises RunFailed where it is no rounding."""
    largest, close = 0.0, CLOSE_ROUNDED if rounded_layers(network) else CLOSE
    for size in BATCHES:
        some = pictures[:size]
        ours, theirs = network(some), runs(some)
        if theirs.shape != ours.shape:
            raise RunFailed(f"what was written answers {tuple(theirs.shape)} where {tuple(ours.shape)} is right")
        largest = max(float((ours - theirs).abs().max()), largest)  # in this order a nan stays one
        if not largest <= close * float(ours.abs().max()):
            raise RunFailed(
                f"what was written differs from the student by {largest:.2g} in a logit (largest "
                f"{float(ours.abs().max()):.2g}): no file is left. Please report it, with `kdray doctor`'s output"
            )
    return largest
