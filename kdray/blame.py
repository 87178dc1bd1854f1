"""Whose fault an exception is, and where in their code it was raised."""

from __future__ import annotations

import contextlib
import importlib
import os
import traceback
from collections.abc import Iterator

from .errors import KdrayError, PluginError


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """For calls into a plugin: its exceptions become a PluginError that says `what` went wrong, why and where.

    What kdray itself raises, or the plugin on purpose, passes, and so does a lack of memory.
    """
    try:
        yield
    except Exception as error:
        if not may_be_blamed(error):
            raise
        raise PluginError(f"{what}: {cause(error)}") from error


def may_be_blamed(error: BaseException) -> bool:
    """Whether an exception is a fault of the code that raised it: not kdray's own errors, nor a lack of memory."""
    # The name is that of torch's error; torch is not imported here.
    return not isinstance(error, KdrayError | MemoryError) and type(error).__name__ != "OutOfMemoryError"


def cause(error: BaseException) -> str:
    """The exception with its place, where it has one: the last line of the plugin's or the user's own code.

    That is the first code on its way which is neither kdray's nor torch's, and what lies beside it: a library that it
    calls is not where the mistake is.
    """
    if isinstance(error, KdrayError):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_machinery(f.filename)]
    beside = [f for f in frames if os.path.dirname(f.filename) == os.path.dirname(frames[0].filename)]
    place = f" ({beside[-1].filename}:{beside[-1].lineno})" if beside else ""
    return f"{type(error).__name__}: {error}{place}"


def tail(text: str) -> str:
    """The last lines of a traceback: where it was raised, and what."""
    return "\n".join(text.rstrip().splitlines()[-6:])


def in_plugin(error: BaseException) -> bool:
    """Whether the exception was raised by code that is not kdray's, torch's calls of it left out."""
    files = [f.filename for f in traceback.extract_tb(error.__traceback__) if not _is_torch(f.filename)]
    return bool(files) and not is_machinery(files[-1])


def is_machinery(file: str) -> bool:
    """kdray itself, torch, and what imports modules."""
    own = (os.path.join(os.path.dirname(module), "") for module in (__file__, importlib.__file__))
    return file.startswith(("<frozen ", *own)) or _is_torch(file)


def _is_torch(file: str) -> bool:
    return f"{os.sep}torch{os.sep}" in file
