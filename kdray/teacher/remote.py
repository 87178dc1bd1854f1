"""The files of a teacher cache in an object store, through pyarrow."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from pyarrow import fs

from ..errors import ConfigError, KdrayError
from .storage import UNFINISHED, Storage, replacing, sweep
from .store_url import StoreURL

CHUNK = 32 << 20  # bytes a request: pyarrow's own choice is 256 KiB, a round trip each

# What the libraries of the stores say, and what to do about it.
ADVICE = {
    r"NO_SUCH_BUCKET|Bucket '.*' not found": (
        "Create the bucket first (s3:// does so with ?allow_bucket_creation=true)."
    ),
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|CREDENTIAL|status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED|OAuth": (
        "Check the credentials (they must be there on every worker) and what they allow in this bucket."
    ),
    r"NETWORK_CONNECTION|CURL|curl|Timeout|timed out|[Cc]onnect": (
        "Check the endpoint (endpoint_override=HOST:PORT, scheme=http where it speaks no TLS) and the network."
    ),
}
OTHERWISE = "Check the address and the credentials."


class Remote(Storage):
    """A mirror holds each file once for all processes of a machine, and takes a new copy when the store's changed.

    A connection does not survive a fork: use one after it, not across it."""

    def __init__(self, url: str, mirror: Path | None):
        self._url = StoreURL.parse(url)
        self.where = self._url.shown
        # Two stores may share a mirror, and have files of the same name and size.
        own = hashlib.sha256(self.where.encode()).hexdigest()[:16]
        self._mirror = mirror and mirror.expanduser().absolute() / own

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_store"}

    @cached_property
    def _store(self) -> tuple[fs.FileSystem, str]:
        return self._url.connect()

    @property
    def _fs(self) -> fs.FileSystem:
        return self._store[0]

    def _path(self, name: str) -> str:
        return f"{self._store[1]}/{name}".rstrip("/")

    def list(self, folder: str = "") -> dict[str, int]:
        return {i.base_name: i.size for i in self._entries(folder) if i.type == fs.FileType.File}

    def folders(self) -> list[str]:
        if self._url.scheme != "gs":
            return sorted(i.base_name for i in self._entries("") if i.type == fs.FileType.Directory)
        # Of Google's store pyarrow lists objects only: a folder shows in the names of what lies in it.
        inside = (i.path.removeprefix(self._path("") + "/") for i in self._entries("", recursive=True))
        return sorted({name.partition("/")[0] for name in inside if "/" in name})

    def read(self, name: str) -> bytes:
        return b"".join(self._chunks(name))

    def write(self, name: str, data: bytes) -> None:
        # In a thread, where no Ctrl-C arrives: pyarrow cannot abort a stream, it closes whatever is left behind, and
        # so an interrupt between opening and writing would put an empty object in the place of a whole one.
        with self._explained(), ThreadPoolExecutor(1) as pool:
            pool.submit(self._put, self._path(name), data).result()

    def _put(self, path: str, data: bytes) -> None:
        if self._url.native:
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        # Of what fsspec reaches, much is no object store (sftp, smb, …) and shows a file as it grows.
        folder = path.rpartition("/")[0]
        part = f"{folder}/{UNFINISHED}{uuid.uuid4().hex}"
        self._fs.create_dir(folder, recursive=True)
        try:
            with self._fs.open_output_stream(part) as stream:
                stream.write(data)
            self._fs.move(part, path)
        except BaseException:
            with suppress(Exception):
                self._fs.delete_file(part)
            raise

    def local(self, name: str, anew: bool = False) -> Path:
        if self._mirror is None:
            raise ValueError(f"{self.where} was opened without a mirror")
        copy = self._mirror / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.with_name(f".lock-{copy.name}")):  # freed by the system when its holder dies
            info = self._info(name)
            if anew or not _is_copy(copy, info):
                with replacing(copy) as file:
                    for chunk in self._chunks(name):
                        file.write(chunk)
                    file.flush()
                    if info.mtime_ns is not None:
                        os.utime(file.fileno(), ns=(info.mtime_ns, info.mtime_ns))
        return copy

    def remove(self, name: str) -> None:
        with self._explained(), suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def sweep(self, older_than: float = 3600) -> None:
        if self._mirror is not None:
            sweep(self._mirror, older_than)

    def _entries(self, folder: str, recursive: bool = False) -> list[fs.FileInfo]:
        with self._explained():
            selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=recursive)
            found = self._fs.get_file_info(selector)
            if not found:
                self._require_bucket()
        return [info for info in found if not info.base_name.startswith(UNFINISHED)]

    def _info(self, name: str) -> fs.FileInfo:
        with self._explained():
            info = self._fs.get_file_info(self._path(name))
            if info.type != fs.FileType.File:
                raise FileNotFoundError(f"{self.where} has no file {name}")
        return info

    def _chunks(self, name: str) -> Iterator[bytes]:
        with self._explained():
            try:
                file = self._fs.open_input_file(self._path(name))
            except FileNotFoundError:
                raise FileNotFoundError(f"{self.where} has no file {name}") from None
            with file:
                left = file.size()
                while left:
                    chunk = file.read(min(left, CHUNK))
                    if not chunk:
                        raise OSError(f"{name} ends {left:,} bytes too early")
                    left -= len(chunk)
                    yield chunk

    def _require_bucket(self) -> None:
        """For a store, nothing in a bucket and no bucket are the same; for a user they are not."""
        if self._url.native and self._fs.get_file_info(self._url.bucket).type == fs.FileType.NotFound:
            raise OSError(f"Bucket '{self._url.bucket}' not found")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever the store's library raises as a ConfigError, except for a file that is not there in a store that
        is."""
        try:
            try:
                yield
            except FileNotFoundError:
                self._require_bucket()
                raise
        except (FileNotFoundError, KdrayError):
            raise
        except Exception as error:  # each library behind fsspec has errors of its own
            text = self._url.hide(str(error)) or type(error).__name__
            advice = next((advice for sign, advice in ADVICE.items() if re.search(sign, text)), OTHERWISE)
            raise ConfigError(f"the store {self.where} cannot be used: {text.rstrip('.')}. {advice}") from error


def _is_copy(path: Path, info: fs.FileInfo) -> bool:
    """Same size, and same time of writing where the store tells it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_size == info.size and info.mtime_ns in (None, found.st_mtime_ns)
