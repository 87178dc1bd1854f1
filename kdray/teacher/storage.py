"""Where the files of a teacher cache lie: a folder of this machine or of the network, or an object store."""

from __future__ import annotations

import errno
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError

UNFINISHED = ".writing-"  # how the names of files begin that are still being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nothing can be written any more


class Storage(ABC):
    """Files by name, `/` between folders. Can be pickled: a connection is opened at first use, in each process anew.

    A file is there whole or not at all, whenever a writer dies. ConfigError: the store cannot be used, and why."""

    where: str
    """As the user wrote it, without secrets: for messages."""
    is_local = False
    """Whether `local` costs nothing."""

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, int]:
        """The files directly in `folder`: name to size in bytes. Empty where there is no such folder."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the direct subfolders, sorted."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Make the file, and the folders above it, or replace it at one stroke. Doing it again does no harm."""

    @abstractmethod
    def local(self, name: str, anew: bool = False) -> Path:
        """A file of this machine with the same content, to be mapped into memory. Raises FileNotFoundError.
        anew: do not trust a copy that is there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """It may be gone already."""

    @abstractmethod
    def sweep(self, older_than: float = 3600) -> None:
        """Remove from this machine what writers left that died more than `older_than` seconds ago."""


def open_storage(where: str, mirror: Path | None = None) -> Storage:
    """where: a path, or a URL: file://…, s3://bucket/prefix, gs://bucket/prefix, or one that fsspec knows.
    mirror: a folder of this machine for `local` copies of a store's files.

    Raises ConfigError for a URL that cannot be understood; a store is not asked for anything yet."""
    if "://" not in where:
        return Folder(where, Path(where))
    parts = urlsplit(where)
    if parts.scheme in ("file", "local"):
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"{where} names no folder of this machine: write three slashes, as in file:///data/cache")
        return Folder(where, Path(unquote(parts.path)))
    from .remote import Remote  # pyarrow is slow to load

    return Remote(where, mirror)


class Folder(Storage):
    """OSError comes through as it is: a full disk, a folder that may not be written."""

    is_local = True

    def __init__(self, where: str, path: Path):
        self.where, self.path = where, Path(os.path.expanduser(path)).absolute()

    def list(self, folder: str = "") -> dict[str, int]:
        return {entry.name: entry.stat().st_size for entry in self._entries(folder) if entry.is_file()}

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in self._entries("") if entry.is_dir())

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with replacing(self.path / name) as file:
            file.write(data)

    def local(self, name: str, anew: bool = False) -> Path:
        path = self.path / name
        path.stat()
        return path

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sweep(self, older_than: float = 3600) -> None:
        sweep(self.path, older_than)

    def _entries(self, folder: str) -> list[Path]:
        try:
            return [entry for entry in (self.path / folder).iterdir() if not entry.name.startswith(UNFINISHED)]
        except FileNotFoundError:
            return []


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` when the block ends, and leaves nothing when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(UNFINISHED + uuid.uuid4().hex)  # in the same folder: only there a rename is atomic
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a machine that loses power may keep the name without the content
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sweep(folder: Path, older_than: float) -> None:
    """Remove unfinished files, in subfolders too, that were last written to more than `older_than` seconds ago."""
    for part in folder.rglob(UNFINISHED + "*"):
        with suppress(FileNotFoundError):  # another process sweeps as well, or its writer lives and has finished
            if time.time() - part.stat().st_mtime > older_than:
                part.unlink()
