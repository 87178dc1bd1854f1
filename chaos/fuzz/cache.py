"""The manifest and the shards of a teacher cache; also such as fit their checksums and were written by no kdray."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from kdray.cli.cache import describe
from kdray.teacher.cache import MANIFEST, Cache, Manifest, _checksum
from kdray.teacher.codec import Codec
from kdray.teacher.inspect import about, unreferenced
from kdray.teacher.reader import Reader, form_of
from kdray.teacher.shard import NAME, digest_of_keys, pack
from kdray.teacher.storage import open_storage

from .damage import JUNK, spoiled_bytes, spoiled_json, spoiled_tree
from .judge import Target

SAMPLES = 50
IDENTITY = {
    "teacher": {
        "model": "convnet",
        "options": {"widths": [4]},
        "weights": "0" * 64,
        "normalize": [[0.5], [0.2]],
        "precision": "fp32",
    },
    "data": {"fingerprint": "1" * 64, "samples": SAMPLES},
    "pictures": {"pages": "pictures", "augmentation": [["crop", 1, {"padding": 1}]], "seeds": None},
    "stored": {"dtype": "fp16", "top_k": None},
}
ACCURACY = {"top1": 0.9, "top5": 1.0, "loss": 0.1, "samples": 10}


def manifest(identity=IDENTITY, accuracy=ACCURACY) -> dict:
    """With the checksum of whatever is in it."""
    return {
        "format": 1,
        "identity": identity,
        "accuracy": accuracy,
        "checksum": _checksum(Manifest(identity, accuracy)),
    }


def _read_manifest(data: bytes, folder: Path) -> None:
    where = folder / "caches" / "one"
    where.mkdir(parents=True, exist_ok=True)
    (where / MANIFEST).write_bytes(data)
    cache = Cache(open_storage(str(where)))
    describe(about(cache))
    list(unreferenced(folder / "caches", [], None))
    cache.compare(IDENTITY)


@st.composite
def _signed(draw) -> bytes:
    tree = draw(spoiled_tree([{"identity": IDENTITY, "accuracy": ACCURACY}]))
    if not isinstance(tree, dict):
        tree = {"identity": tree, "accuracy": tree}
    value = manifest(tree.get("identity", draw(JUNK)), tree.get("accuracy", draw(JUNK)))
    return json.dumps(value).encode()


def _shards() -> list[tuple[str, bytes]]:
    """Of one page and of several, dense and with the largest logits only."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for keys in (np.arange(20), np.array([3, 60, 61, 149])):
        logits = torch.randn(len(keys), 6, generator=draws)
        for codec in (Codec(), Codec("bf16", 2)):
            found.append(pack(keys, codec.encode("logits", logits), SAMPLES))
    return found


GOOD = _shards()


def _named(name: str, data: bytes) -> str:
    """The name that proves such bytes."""
    head = name.rsplit(".", 2)[0]
    return f"{head}.{hashlib.sha256(head.encode() + data).hexdigest()[:32]}.safetensors"


def _read_shard(given: tuple[str, bytes], folder: Path) -> None:
    name, data = given
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "cache" / "logits").mkdir(parents=True)
    (folder / "cache" / "logits" / name).write_bytes(data)
    cache = Cache(open_storage(str(folder / "cache")))
    keys = np.arange(SAMPLES * 4)
    list(cache.check("logits", cache.shards("logits")))
    cache.lacking("logits", [keys[:20], keys[50:70]], SAMPLES)
    rows = Reader(cache, "logits", SAMPLES, form_of(Codec().encode("logits", torch.zeros(1, 6)))).load(keys)
    found = rows.find(keys)
    parts = rows.take(found[found >= 0])
    if (found >= 0).any():
        Codec().decode("logits", parts, 6, torch.float32)


def _header(size: int | None, value, body: bytes) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


@st.composite
def _forged(draw) -> tuple[str, bytes]:
    """A shard of someone who knows how names are made."""
    name, data = draw(st.sampled_from(GOOD))
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    match draw(st.sampled_from(["bytes", "header", "tree", "parts", "parts", "name"])):
        case "bytes":
            data = draw(spoiled_bytes([data]))
        case "header":
            data = _header(draw(st.sampled_from([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])), header, body)
        case "tree":
            data = _header(None, draw(spoiled_tree([header])), body)
        case "parts":
            name, data = pack(*draw(_parts()), SAMPLES)
        case "name":
            numbers = [str(draw(st.sampled_from([0, 1, 3, 9, 10**6, 10**30]))) for _ in range(3)]
            keys = draw(st.sampled_from([digest_of_keys(np.arange(20)), "0" * 16]))
            name = f"{numbers[0]}-{numbers[1]}.{numbers[2]}.{keys}.{'0' * 32}.safetensors"
    return _named(name, data), data


@st.composite
def _parts(draw):
    """Tensors of any names, types and shapes beside the keys."""
    rows = draw(st.integers(1, 5))
    found = {}
    for name in draw(st.sets(st.sampled_from(["values", "rest", "indices", "row", "page", "more"]), min_size=1)):
        shape = draw(st.sampled_from([(), (rows,), (rows, 6), (rows + 1, 6), (0, 6), (rows, 2, 3)]))
        dtype = draw(st.sampled_from([torch.float16, torch.float32, torch.int64, torch.bool, torch.uint8]))
        found[name] = torch.ones(shape).mul(draw(st.sampled_from([0, 1, 100]))).to(dtype)
    return np.sort(np.array(draw(st.lists(st.integers(0, 199), min_size=rows, max_size=rows)))), found


@st.composite
def _under_the_old_name(draw) -> tuple[str, bytes]:
    name, data = draw(st.sampled_from(GOOD))
    return name, draw(spoiled_bytes([data]))


assert all(NAME.fullmatch(name) for name, _ in GOOD)
TARGETS = [
    Target("cache: manifest", spoiled_json([manifest()]), _read_manifest, (MANIFEST, "is a cache of something else")),
    Target("cache: manifest, forged", _signed(), _read_manifest, (MANIFEST, "is a cache of something else")),
    Target("cache: damaged shard", _under_the_old_name(), _read_shard, (".safetensors",)),
    Target("cache: forged shard", _forged(), _read_shard, (".safetensors",)),
]
