"""Checkpoints of a run: a folder each, written whole or not at all, holding all that the rest of the run depends on.

student.safetensors, ema.safetensors, distillers.safetensors (heads, banks, constants), optimizer.pt, state.json
(counters, and the sha256 of each file and of itself). Random numbers need no saving: every draw follows from the seed
and the place in the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import MismatchError, RunFailed
from ..models.checkpoint import tensors_digest

FORMAT = 3


@dataclass
class Counters:
    """Where a run stands. epoch: of the phase (the losses' first stages, then the main loop); batch: batches done in
    `epoch`; sums: of the terms over those batches, by worker, for the epoch's means; skipped: batches left out
    since their loss was no number, in all and now in a row; teacher: measured accuracies by teacher."""

    step: int = 0
    phase: int = 0
    epoch: int = 0
    batch: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)
    skipped: int = 0
    skipped_in_row: int = 0
    best: dict | None = None
    teacher: dict | None = None
    digest: str = ""
    seconds: float = 0.0


BEST, STATE = "best.safetensors", "state.json"


_COUNTERS, _FILES = TypeAdapter(Counters), TypeAdapter(dict[str, str])


class Damaged(Exception):
    """A file of a checkpoint is not what was written."""


def save(run: Path, counters: Counters, tensors: dict[str, dict[str, Tensor]], optimizer: dict, keep: int) -> Path:
    """Write checkpoint `step-…` into the run folder, then remove all but the newest `keep`. The best student so far
    goes with it: a resumed run may find another one."""
    folder = run / "checkpoints"
    final = folder / name_of(counters.step)
    part = folder / f".writing-{final.name}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        folder.mkdir(exist_ok=True)  # not the run's own folder: its storage may be away
        part.mkdir()
        for name, state in tensors.items():
            write_safetensors(state, part / f"{name}.safetensors")
        torch.save(optimizer, part / "optimizer.pt")
        if (run / BEST).exists():
            shutil.copyfile(run / BEST, part / BEST)
        sums = {file.name: sha256_of(file) for file in sorted(part.iterdir())}
        state = {"format": FORMAT, "files": sums, **asdict(counters)}
        (part / STATE).write_text(json.dumps({**state, "sha256": _own(state)}))
        for file in part.iterdir():
            _flush(file)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    except BaseException as error:  # on a full disk torch raises RuntimeError, safetensors its own
        shutil.rmtree(part, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise RunFailed(
            f"the checkpoint {final} could not be written: {error}. Earlier checkpoints are whole; free the space and "
            f"`kdray resume` goes on."
        ) from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def name_of(step: int) -> str:
    return f"step-{step:09d}"


def restore_best(path: Path, run: Path) -> None:
    """Put the best student as of a checkpoint back into the run folder."""
    if (path / BEST).exists():
        part = run / f".writing-{BEST}"
        shutil.copyfile(path / BEST, part)
        os.replace(part, run / BEST)


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first, without those that were set aside."""
    return sorted(folder.glob(f"step-{'[0-9]' * 9}"))


Loaded = tuple[Counters, dict[str, dict[str, Tensor]], dict]
"""Counters, tensors by file, the optimizer's state."""


def newest(folder: Path, digest: str) -> tuple[Path | None, Loaded | None, list[str]]:
    """The newest whole checkpoint, if there is one, its content, and what is to be told of damaged ones, which are set
    aside: they are renamed.

    Raises MismatchError when none is whole, and where `load` does; RunFailed where one cannot be read."""
    found, told = checkpoints(folder), []
    for path in reversed(found):
        try:
            loaded = load(path, digest)
        except Damaged as damage:
            told.append((path, f"checkpoint {path} is damaged: {damage}"))
            continue
        except OSError as error:  # it may be whole when its storage is back
            raise RunFailed(
                f"checkpoint {path} cannot be read: {error}. It stays as it is: `kdray resume` goes on when its "
                "storage is in order"
            ) from error
        lines = []
        for damaged, why in told:
            aside = damaged.with_name(f"damaged-{damaged.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(damaged, aside)
            lines.append(f"{why}. It is called {aside.name} now; the run goes on from {path.name}")
        return path, loaded, lines
    if told:
        raise MismatchError(
            f"{told[0][1]}. No other is whole: put it back from a copy, or remove the folder {folder} to begin anew"
        )
    return None, None, []


def load(path: Path, digest: str) -> Loaded:
    """Raises Damaged when a file is not what was written, OSError when the storage does not give it, MismatchError when
    the checkpoint belongs to another config or format."""
    state = _state(path)
    written, files = state.pop("format"), state.pop("files", {})  # format 2 has no sums
    if written > FORMAT:
        raise MismatchError(f"{path} was written by a newer kdray; update kdray to resume this run")
    if written < 2:
        raise MismatchError(f"{path} was written by kdray 0.1; resume this run with that version, or start it anew")
    with _damage_of(path / STATE):
        if written == 2:
            state["sums"] = {name: [total] for name, total in state["sums"].items()}
        state.pop("sha256", None)
        counters, files = _COUNTERS.validate_python(state), _FILES.validate_python(files)
    there = {file.name for file in path.iterdir() if file.is_file()}
    for name, expected in files.items():
        if name not in there:
            raise Damaged(f"{name} is missing")
        if sha256_of(path / name) != expected:
            raise Damaged(f"{name} does not fit its checksum")
    if counters.digest != digest:
        raise MismatchError(
            f"{path} belongs to another configuration ({counters.digest[:12]}, this run has {digest[:12]}): its "
            f"config.yaml was changed after the start"
        )
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        with _damage_of(file):
            tensors[file.stem] = load_file(file)
    with _damage_of(path / "optimizer.pt"):
        return counters, tensors, torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")


def take_over(source: Path, run: Path, digest: str, change: Callable[[dict], None]) -> int:
    """Make a checkpoint of another run, with another config, the only one of `run`. `change` may change
    the optimizer's state. Returns its epoch."""
    counters, tensors, optimizer = load(source, _state(source)["digest"])
    tensors.pop("best", None)
    restore_best(source, run)
    change(optimizer)
    counters.digest = digest
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    save(run, counters, tensors, optimizer, keep=1)
    return counters.epoch


def _state(path: Path) -> dict:
    with _damage_of(path / STATE):
        state = json.loads((path / STATE).read_text())
        if not isinstance(state["format"], int):
            raise Damaged(f"{STATE} names no format")
        if state["format"] == FORMAT and state["sha256"] != _own(state):
            raise Damaged(f"{STATE} does not fit its checksum")
        return state


@contextlib.contextmanager
def _damage_of(file: Path) -> Iterator[None]:
    """What the content of a file is to blame for, is Damaged: also that it is not there, in a folder that is."""
    try:
        yield
    except (Damaged, MemoryError):
        raise
    except Exception as error:  # the readers of broken files raise whatever they stumble over
        gone = isinstance(error, FileNotFoundError | IsADirectoryError) and file.parent.is_dir()
        if isinstance(error, OSError) and not gone:
            raise
        raise Damaged(f"{file.name} cannot be read ({type(error).__name__}: {error})") from error


def _own(state: dict) -> str:
    """The checksum of a state.json, over all else in it."""
    text = json.dumps({key: value for key, value in state.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    found, seen = {}, set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value  # the format has no tensors that share memory
        seen.add(place)
    save_file(found, path, {"sha256": tensors_digest(found)})


def replace_safetensors(state: dict[str, Tensor], path: Path) -> None:
    """As `write_safetensors`, and a reader sees the old file or the new one, never a part."""
    part = path.with_name(f".writing-{path.name}")
    try:
        write_safetensors(state, part)
        _flush(part)
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        raise RunFailed(f"{path} could not be written: {error}. Free the space and `kdray resume` goes on.") from error


def _flush(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
