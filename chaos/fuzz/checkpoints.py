"""Weights that others wrote, and a run's own checkpoints."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from kdray.engine.checkpoint import FORMAT, STATE, Counters, _own, newest
from kdray.engine.checkpoint import save as save_checkpoint
from kdray.models.checkpoint import load_weights
from kdray.models.convnet import ConvNet

from .damage import DEEP, JUNK, spoiled_bytes, spoiled_tree
from .judge import MARKER, Fault, Target

DIGEST = "d" * 64
WEIGHTS = {name: value.contiguous() for name, value in ConvNet([4], 10, 1).state_dict().items()}


class Code:
    """Makes the marker when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


def _torch(value, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _planted() -> list[bytes]:
    """Code in each of the formats that a torch file may have."""
    nested = {"state_dict": {**WEIGHTS, "fc.bias": Code()}}
    code = [_torch(Code()), _torch(nested), _torch(nested, zipped=False), pickle.dumps(nested), pickle.dumps(Code(), 0)]
    with_extra = io.BytesIO(_torch(WEIGHTS))
    with zipfile.ZipFile(with_extra, "a") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Code()))
    return [*code, with_extra.getvalue(), f"cos\nmkdir\n(S'{MARKER}'\ntR.".encode()]


WHOLE = [save(WEIGHTS), _torch(WEIGHTS), _torch({"model": WEIGHTS, "epoch": 3}), _torch(WEIGHTS, zipped=False)]
HUGE = [struct.pack("<Q", size) + b"{" for size in (2**20, 2**40, 2**63)]
TOKENS = [f"cos\nmkdir\n(S'{MARKER}'\ntR.".encode(), b"\x80\x04\x95", b"PK\x03\x04", *HUGE]


@st.composite
def _other_header(draw) -> bytes:
    """safetensors with another table of its tensors: types, shapes and offsets that do not fit."""
    data = save(WEIGHTS)
    size = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(draw(spoiled_tree([json.loads(data[8 : 8 + size])]))).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _other_content() -> st.SearchStrategy[bytes]:
    """torch files of something else than weights."""
    tensors = st.sampled_from(
        [torch.ones(3), torch.ones(4, 1, 3, 3), torch.ones(()), torch.ones(2, dtype=torch.complex64)]
    )
    sparse = st.just(torch.ones(4, 4).to_sparse())
    names = st.sampled_from([*WEIGHTS, "state_dict", "model", "module.fc.bias"])
    return st.one_of(JUNK, DEEP, st.dictionaries(names, st.one_of(tensors, sparse, JUNK), max_size=8)).map(_torch)


def _read_weights(given: tuple[str, bytes], folder: Path) -> None:
    suffix, data = given
    path = folder / f"weights{suffix}"
    path.write_bytes(data)
    load_weights(ConvNet([4], 10, 1), path)


@cache
def _run() -> dict[str, bytes]:
    """The files of a checkpoint, as they are written."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    counters = Counters(step=8, epoch=1, sums={"ce": [1.0]}, best={"epoch": 1, "top1": 0.5}, digest=DIGEST)
    with TemporaryDirectory() as run:
        tensors = {"student": WEIGHTS, "distillers": {"bank": torch.ones(3, 2)}}
        path = save_checkpoint(Path(run), counters, tensors, optimizer.state_dict(), keep=1)
        return {file.name: file.read_bytes() for file in path.iterdir()}


def _read_checkpoint(given: tuple[str, bytes, bool], folder: Path) -> None:
    """older: whether there is a whole checkpoint before the damaged one, to which the run must return."""
    name, data, older = given
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for step in ([7] if older else []) + [8]:
        (folder / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
        for file, content in _run().items():
            (folder / "checkpoints" / f"step-{step:09d}" / file).write_bytes(
                data if (file, step) == (name, 8) else content
            )
    path, (counters, _, _), told = newest(folder / "checkpoints", DIGEST)
    counters.epoch + counters.step + counters.batch + counters.seconds  # numbers
    damaged = data != _run()[name] and not _is_signed(name, data)
    if damaged and (path.name != "step-000000007" or name not in told[0]):
        raise Fault("the damage was not seen, or not told")


def _is_signed(name: str, data: bytes) -> bool:
    """Whether it is a state.json that a checksum of its own, or a format without one, speaks for."""
    try:
        state = json.loads(data)
        return name == STATE and (state["format"] != FORMAT or state["sha256"] == _own(state))
    except Exception:
        return False


@st.composite
def _damaged_checkpoint(draw):
    name = draw(st.sampled_from(sorted(_run())))
    planted = [code for code in _planted() if name.endswith(".pt")]
    spoiled = spoiled_bytes([_run()[name]], TOKENS)
    return name, draw(st.one_of(spoiled, st.sampled_from(planted)) if planted else spoiled), draw(st.booleans())


@st.composite
def _forged_state(draw):
    """With a right checksum, or of the format that had none."""
    state = {**json.loads(_run()[STATE]), "format": draw(st.sampled_from([FORMAT, FORMAT, 2]))}
    state = draw(spoiled_tree([state]))
    if isinstance(state, dict) and draw(st.booleans()):
        state["sha256"] = _own(state)
    return STATE, json.dumps(state).encode(), draw(st.booleans())


_SUFFIX = st.sampled_from([".pt", ".pth", ".safetensors", ".bin"])
_ANY = st.one_of(
    spoiled_bytes(WHOLE, TOKENS),
    _other_header(),
    _other_content(),
    spoiled_bytes(_planted(), most=1),
    st.sampled_from(_planted()),
)
TARGETS = [
    Target("weights: .pt, .pth, .safetensors", st.tuples(_SUFFIX, _ANY), _read_weights, ("weights.",)),
    Target("checkpoint: damaged file", _damaged_checkpoint(), _read_checkpoint, ("step-",)),
    Target("checkpoint: forged state.json", _forged_state(), _read_checkpoint, ("step-",)),
]
