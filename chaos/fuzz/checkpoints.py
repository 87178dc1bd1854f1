"""Weights that others wrote, and a run's own checkpoints."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from kdray.models.checkpoint import load_weights
from kdray.models.convnet import ConvNet

from .damage import DEEP, JUNK, spoiled_bytes, spoiled_tree
from .judge import MARKER, Target

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


_SUFFIX = st.sampled_from([".pt", ".pth", ".safetensors", ".bin"])
_ANY = st.one_of(
    spoiled_bytes(WHOLE, TOKENS),
    _other_header(),
    _other_content(),
    spoiled_bytes(_planted(), most=1),
    st.sampled_from(_planted()),
)
TARGETS = [Target("weights: .pt, .pth, .safetensors", st.tuples(_SUFFIX, _ANY), _read_weights, ("weights.",))]
