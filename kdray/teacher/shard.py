"""A file of a cache: answers to some pictures, in the safetensors format, under a name that proves its content.

`<first page>-<last page>.<rows>.<keys>.<all>.safetensors`: keys and all are the beginnings of SHA-256 digests of the
keys it answers, and of the name up to there with the whole file. So equal work has an equal name whoever did it, what
is there is known from the names alone, and a file that was cut short, changed or renamed does not fit its name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import MismatchError

NAME = re.compile(r"(\d+)-(\d+)\.(\d+)\.([0-9a-f]{16})\.([0-9a-f]{32})\.safetensors")


@dataclass(frozen=True)
class Shard:
    """What a name says."""

    name: str
    first: int
    last: int
    rows: int
    keys: str
    digest: str

    @property
    def head(self) -> bytes:
        """The name without its digest, which is of this and of the file's bytes."""
        return self.name.rsplit(".", 2)[0].encode()

    def has_page(self, page: int) -> bool:
        return self.first <= page <= self.last


def parse(name: str) -> Shard | None:
    """None: not a name of a shard."""
    found = NAME.fullmatch(name)
    return Shard(name, *map(int, found.groups()[:3]), *found.groups()[3:]) if found else None


def digest_of_keys(keys: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(keys, dtype="<i8").tobytes()).hexdigest()[:16]


def pack(keys: np.ndarray, parts: dict[str, Tensor], samples: int) -> tuple[str, bytes]:
    """Name and content of the shard that answers `keys` (n,), sorted, with `parts`, tensors of n rows."""
    page, row = np.divmod(keys, samples)
    first, last = int(page[0]), int(page[-1])
    tensors = {"row": torch.from_numpy(row.astype(np.int32)), **parts}
    if last > first:
        tensors["page"] = torch.from_numpy(page.astype(np.int32))
    data = save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    head = f"{first:04d}-{last:04d}.{len(keys)}.{digest_of_keys(keys)}"
    digest = hashlib.sha256(head.encode() + data).hexdigest()[:32]
    return f"{head}.{digest}.safetensors", data


@dataclass(frozen=True)
class Opened:
    keys: np.ndarray
    """Sorted."""
    parts: dict[str, Tensor]
    """Of as many rows each, memory-mapped."""


def check(shard: Shard, content: BinaryIO, where: str, cache: str) -> None:
    """Raises MismatchError where the content of the file `where` is not what its name says. cache: that it is in."""
    found = hashlib.file_digest(content, lambda: hashlib.sha256(shard.head)).hexdigest()[:32]
    if found != shard.digest:
        raise MismatchError(
            f"{where} is damaged: its name and {content.tell():,} bytes have the SHA-256 {found[:12]}…, those that "
            f"were written had {shard.digest[:12]}…. `kdray cache verify {cache} --repair` removes what is damaged, "
            "and `kdray precompute` computes it again."
        )


def open_shard(shard: Shard, path: Path, samples: int, cache: str) -> Opened:
    """Raises MismatchError where the file is not what its name says."""
    with open(path, "rb") as file:
        check(shard, file, str(path), cache)
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:  # its bytes are as they were written, so a kdray wrote it
        raise MismatchError(f"{path} is not a shard that this kdray can read: {error}") from error
    row = parts.pop("row", torch.empty(0))
    page = parts.pop("page", torch.full_like(row, shard.first))
    if all(x.shape[:1] == (shard.rows,) for x in (row, page, *parts.values())) and row.ndim == page.ndim == 1:
        keys = page.numpy().astype(np.int64) * samples + row.numpy()
        if digest_of_keys(keys) == shard.keys:
            return Opened(keys, parts)
    raise MismatchError(f"{path} is not a shard that this kdray can read: its rows are not those that its name says")
