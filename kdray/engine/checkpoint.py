"""Checkpoints of a run: a folder each, written whole or not at all, holding all that the rest of the run depends on.

student.safetensors, ema.safetensors, distillers.safetensors (heads, banks, constants), optimizer.pt, state.json
(counters). Random numbers need no saving: every draw follows from the seed and the place in the run.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import MismatchError, RunFailed

FORMAT = 3


@dataclass
class Counters:
    """Where a run stands. epoch: of the phase (the losses' first stages, then the main loop); batch: batches done in
    `epoch`; sums: of the terms over those batches, by worker, for the epoch's means; teacher: measured accuracies by
    teacher."""

    step: int = 0
    phase: int = 0
    epoch: int = 0
    batch: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)
    best: dict | None = None
    teacher: dict | None = None
    digest: str = ""
    seconds: float = 0.0


BEST = "best.safetensors"


def save(run: Path, counters: Counters, tensors: dict[str, dict[str, Tensor]], optimizer: dict, keep: int) -> Path:
    """Write checkpoint `step-…` into the run folder, then remove all but the newest `keep`. The best student so far
    goes with it: a resumed run may find another one."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{counters.step:09d}"
    part = folder / f".writing-{final.name}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        for name, state in tensors.items():
            write_safetensors(state, part / f"{name}.safetensors")
        torch.save(optimizer, part / "optimizer.pt")
        if (run / BEST).exists():
            shutil.copyfile(run / BEST, part / BEST)
        (part / "state.json").write_text(json.dumps({"format": FORMAT, **asdict(counters)}))
        for file in part.iterdir():
            _flush(file)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    except Exception as error:  # on a full disk torch raises RuntimeError, safetensors its own
        shutil.rmtree(part, ignore_errors=True)
        raise RunFailed(
            f"the checkpoint {final} could not be written: {error}. Earlier checkpoints are whole; free the space and "
            f"`kdray resume` goes on."
        ) from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def restore_best(path: Path, run: Path) -> None:
    """Put the best student as of a checkpoint back into the run folder."""
    if (path / BEST).exists():
        part = run / f".writing-{BEST}"
        shutil.copyfile(path / BEST, part)
        os.replace(part, run / BEST)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())


def load(path: Path, digest: str) -> tuple[Counters, dict[str, dict[str, Tensor]], dict]:
    """Raises MismatchError when the checkpoint belongs to another config or a newer format."""
    state = json.loads((path / "state.json").read_text())
    written = state.pop("format")
    if written > FORMAT:
        raise MismatchError(f"{path} was written by a newer kdray; update kdray to resume this run")
    if written == 2:
        state["sums"] = {name: [total] for name, total in state["sums"].items()}
    if written < 2:
        raise MismatchError(f"{path} was written by kdray 0.1; resume this run with that version, or start it anew")
    counters = Counters(**state)
    if counters.digest != digest:
        raise MismatchError(
            f"{path} belongs to another configuration ({counters.digest[:12]}, this run has {digest[:12]}): its "
            f"config.yaml was changed after the start"
        )
    tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return counters, tensors, torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")


def write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    found, seen = {}, set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value  # the format has no tensors that share memory
        seen.add(place)
    save_file(found, path)


def replace_safetensors(state: dict[str, Tensor], path: Path) -> None:
    """As `write_safetensors`, and a reader sees the old file or the new one, never a part."""
    part = path.with_name(f".writing-{path.name}")
    try:
        write_safetensors(state, part)
        _flush(part)
        os.replace(part, path)
    except Exception as error:
        part.unlink(missing_ok=True)
        raise RunFailed(f"{path} could not be written: {error}. Free the space and `kdray resume` goes on.") from error


def _flush(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
