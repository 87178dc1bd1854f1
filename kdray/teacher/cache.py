"""The stored answers of one teacher about one kind of pictures.

manifest.json                what the answers depend on, and how accurate the teacher is; written once, never changed
logits/…  embedding/…        shards, written whole or not at all, in whatever order and by whomever

Nobody keeps a list of the shards: what is there is what their names say, so writers need not agree on anything.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import MismatchError, RunFailed
from .codec import OUTPUTS
from .identity import differences, misshapen
from .pictures import missing
from .shard import Opened, Shard, check, digest_of_keys, open_shard, pack, parse
from .storage import FULL, Storage

FORMAT = 1
MANIFEST = "manifest.json"
THREADS = 8


@dataclass(frozen=True)
class Manifest:
    identity: dict
    accuracy: dict
    """top1, top5, loss, samples: of the teacher on the test set."""


class Cache:
    """folder: inside the storage; "" is the storage itself."""

    def __init__(self, storage: Storage, folder: str = ""):
        self.storage, self.folder = storage, folder

    @property
    def where(self) -> str:
        return f"{self.storage.where}/{self.folder}".rstrip("/")

    # -- what it belongs to ------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """None where there is no cache. Raises MismatchError for a damaged one, one of a newer format, and where there
        are answers without one: nobody knows of what."""
        text = self._manifest_text()
        if text is None and any(self.shards(output) for output in OUTPUTS):
            text = self._manifest_text()  # once more: somebody may have begun just now, the manifest first
            if text is None:
                raise MismatchError(f"{self.where} has answers, and no {MANIFEST} that says of what. {REMAKE}")
        if text is None:
            return None
        where = f"{self.where}/{MANIFEST}"
        try:
            value = json.loads(text)
            written, found = value["format"], Manifest(value["identity"], value["accuracy"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MismatchError(f"{where} is damaged: {type(error).__name__}: {error}. {REMAKE}") from error
        if written != FORMAT:
            raise MismatchError(
                f"{where} has format {written}, and this kdray knows format {FORMAT}: a newer version wrote it. Update "
                "kdray, or give another teacher.cache.path"
            )
        if value.get("checksum") != _checksum(found):
            raise MismatchError(f"{where} is damaged: it does not fit its own checksum. {REMAKE}")
        if why := misshapen(found.identity, found.accuracy):
            raise MismatchError(f"{where} is not a manifest that this kdray can read: {why}. {REMAKE}")
        return found

    def _manifest_text(self) -> bytes | None:
        try:
            return self.storage.read(self._name(MANIFEST))
        except FileNotFoundError:
            return None

    def compare(self, identity: dict) -> Manifest | None:
        """The manifest, where it is of this identity; None where there is none. Raises MismatchError otherwise, with
        both sides."""
        found = self.manifest()
        if found and (lines := differences(found.identity, identity)):
            raise MismatchError("\n".join([f"{self.where} is a cache of something else:", *lines]))
        return found

    def create(self, identity: dict, accuracy: dict) -> Manifest:
        """Write the manifest, unless there is one of this identity."""
        manifest = self.compare(identity)
        if manifest is None:
            manifest = Manifest(identity, accuracy)
            value = {"format": FORMAT, **vars(manifest), "checksum": _checksum(manifest)}
            self._write(MANIFEST, (json.dumps(value, indent=2) + "\n").encode())
        return manifest

    # -- shards ------------------------------------------------------------------------------------------------------

    def shards(self, output: str) -> list[Shard]:
        return sorted(filter(None, map(parse, self.storage.list(self._name(output)))), key=lambda shard: shard.name)

    def write(self, output: str, keys: np.ndarray, parts: dict[str, Tensor], samples: int) -> str:
        """Store the answers to `keys`, sorted. Returns the shard's name."""
        name, data = pack(keys, parts, samples)
        self._write(f"{output}/{name}", data)
        return name

    def fetch(self, output: str, shard: Shard, anew: bool = False) -> Path:
        """Its file on this machine. anew: do not trust a copy of a remote one."""
        return self.storage.local(self._name(f"{output}/{shard.name}"), anew)

    def open(self, output: str, shard: Shard, samples: int) -> Opened:
        """Raises MismatchError for a damaged one."""
        try:
            return open_shard(shard, self.fetch(output, shard), samples, self.where)
        except MismatchError:
            if self.storage.is_local:
                raise
        return open_shard(shard, self.fetch(output, shard, anew=True), samples, self.where)

    def check(self, output: str, shards: Iterable[Shard]) -> Iterable[tuple[Shard, MismatchError | None]]:
        """Each shard in turn, and what is wrong with it where it is stored: copies of a store's files are not asked."""

        def checked(shard):
            name = self._name(f"{output}/{shard.name}")
            local = self.storage.is_local  # of a remote one the bytes there count, not those of its copy here
            try:
                with open(self.fetch(output, shard), "rb") if local else BytesIO(self.storage.read(name)) as content:
                    check(shard, content, f"{self.where}/{output}/{shard.name}", self.where)
            except MismatchError as error:
                return shard, error
            return shard, None

        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(checked, shards)

    def remove(self, output: str, shard: Shard) -> None:
        self.storage.remove(self._name(f"{output}/{shard.name}"))

    def lacking(self, output: str, items: Iterable[np.ndarray], samples: int) -> list[np.ndarray]:
        """Of each item, keys in order, those without an answer.

        An item that a shard is named after is there; the shards of other items are opened, and so far checked.
        """
        shards = self.shards(output)
        whole = {shard.keys for shard in shards}
        found: dict[str, np.ndarray] = {}

        def lacks(item: np.ndarray) -> np.ndarray:
            if digest_of_keys(item) in whole:
                return item[:0]
            first, last = item[0] // samples, item[-1] // samples
            for shard in shards:
                if shard.first <= last and first <= shard.last:
                    if shard.name not in found:
                        found[shard.name] = self.open(output, shard, samples).keys
                    item = missing(item, found[shard.name])
            return item

        return [lacks(item) for item in items]

    def _write(self, name: str, data: bytes) -> None:
        try:
            self.storage.write(self._name(name), data)
        except OSError as error:
            if error.errno not in (*FULL, errno.EACCES, errno.EPERM):
                raise
            raise RunFailed(
                f"{self.where} cannot be written: {error.strerror}. What is stored is whole; `kdray precompute`, or "
                "`kdray resume` of a run that fills it, goes on when it can"
            ) from error

    def _name(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


REMAKE = "Give another teacher.cache.path, or remove the folder and run `kdray precompute` again."


def _checksum(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(vars(manifest), sort_keys=True).encode()).hexdigest()
