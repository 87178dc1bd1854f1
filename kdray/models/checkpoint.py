"""Load weights from files that others wrote, without ever running code from them; and name weights by a digest."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from .rounding import without_ranges

NESTED = ("state_dict", "model", "net")
SHOWN = 3


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill every parameter and buffer of `model` from `path`: safetensors, or a torch file.

    The state dict may be plain or under one of `NESTED`, its names with or without DataParallel's `module.`.
    Raises ConfigError for a file that is missing, truncated, no checkpoint, would run code, or is of another network.
    """
    path = Path(os.path.expanduser(path))
    state = _state_dict(_read(path), path)
    own = model.state_dict()
    if all(name.startswith("module.") for name in state) and not any(name.startswith("module.") for name in own):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = without_ranges(state, own)
    _compare(own, state, path, type(model).__name__)
    model.load_state_dict(state, strict=False)  # all but the step counters of batch norm have been compared


def weights_digest(module: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of all parameters and buffers, independent of device and order."""
    return tensors_digest(module.state_dict())


def tensors_digest(state: dict[str, Tensor]) -> str:
    """The same, of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path):
    if not path.is_file():
        raise ConfigError(_missing(path))
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if path.suffix == ".safetensors" or start[8:] == b"{":
            return _checked(load_file(path), path)
        # The options that training scripts save beside the weights are plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write: they end in an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise ConfigError(f"checkpoint {path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # the readers of broken files raise whatever they stumble over
        refused = _refused(error, start)
        if refused:
            raise ConfigError(
                f"checkpoint {path} is refused: reading it would run code or build objects ({refused}), "
                f"and kdray reads tensors only. Save it anew with torch.save(model.state_dict(), ...)."
            ) from error
        raise ConfigError(_no_checkpoint(path, start)) from error


def _checked(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """What kdray wrote holds a digest of its tensors."""
    with safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get("sha256")
    if expected not in (None, tensors_digest(state)):
        raise ValueError("does not fit its checksum")
    return state


def _refused(error: Exception, start: bytes) -> str:
    """What the safe reader would not do, in words; empty where the file is no pickle, or a broken one."""
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    if name := re.search(r"(?:GLOBAL|global|class|function) ([A-Za-z_]\w*(?:\.\w+)+)", str(error)):
        return name[1]
    return "a Python pickle, not written by torch" if "Unsupported" in str(error) and start[:1] == b"\x80" else ""


def _no_checkpoint(path: Path, start: bytes) -> str:
    """Why a file could not be read, by its first bytes: each format begins in a way of its own."""
    size = path.stat().st_size
    if not size:
        return f"checkpoint {path} is empty."
    if path.suffix == ".safetensors" or start[8:] == b"{" or start[:2] == b"PK" or start[:1] == b"\x80":
        return f"checkpoint {path} is truncated or damaged ({size:,} bytes): copy or download it again."
    return f"{path} is not a checkpoint: neither safetensors nor a torch file (it begins with {start[:8]!r})."


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"checkpoint {path} is a folder, not a file."
    if not path.parent.is_dir():
        return f"checkpoint {path} does not exist, nor does its folder."
    files = [file.name for file in path.parent.iterdir() if file.is_file()]
    return f"checkpoint {path} does not exist.{did_you_mean(path.name, files)}"


def _state_dict(content, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for key in NESTED:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not content:
        what = "nothing" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ConfigError(f"checkpoint {path} holds {what}, not a dict of named tensors.")
    other = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if other:
        raise ConfigError(
            f"checkpoint {path} holds no state dict: {', '.join(map(repr, other[:5]))} are not named tensors. "
            f"It is looked for at the top and under {', '.join(map(repr, NESTED))}."
        )
    return content


def _compare(own: dict[str, Tensor], state: dict[str, Tensor], path: Path, network: str) -> None:
    """Raise ConfigError unless names and shapes are equal. Old files may lack batch norm's num_batches_tracked."""
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    if not (shapes or missing or surplus):
        return
    if not (missing or surplus) and (classes := _classes(own, state, shapes)):
        n = shapes[0]
        raise ConfigError(
            f"checkpoint {path} has {classes[0]} classes, and the network here ({network}) has {classes[1]} "
            f"({n}: {_size(state[n])} in the file, {_size(own[n])} in the network)."
        )
    lines = [f"checkpoint {path} does not fit the network ({network}):"]
    lines += [f"  {n}: {_size(state[n])} in the file, {_size(own[n])} in the network" for n in shapes[:SHOWN]]
    lines += [f"  {n}: {_size(own[n])} in the network, missing in the file" for n in missing[:SHOWN]]
    lines += [f"  {n}: {_size(state[n])} in the file, unknown to the network" for n in surplus[:SHOWN]]
    lines.append(
        f"In all: {len(shapes)} of another shape, {len(missing)} missing, {len(surplus)} unexpected, of {len(own)}. "
        "Is `model` the network that was saved, and its number of classes that of the data?"
    )
    raise ConfigError("\n".join(lines))


def _classes(own: dict[str, Tensor], state: dict[str, Tensor], shapes: list[str]) -> tuple[int, int] | None:
    """(in the file, in the network) where the rows of one linear layer are all that differs: another class count."""
    layers = {name.rpartition(".")[0] for name in shapes}
    sizes = {(len(state[name]), len(own[name])) for name in shapes if state[name].ndim and own[name].ndim}
    rest_is_equal = all(state[name].shape[1:] == own[name].shape[1:] for name in shapes)
    linear = any(own[name].ndim == 2 for name in shapes)
    return sizes.pop() if len(layers) == len(sizes) == 1 and rest_is_equal and linear else None


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
