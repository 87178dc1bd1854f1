"""Every error that kdray raises on purpose: what is wrong, where, and what to do, with the exit code of the command
line."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator


class KdrayError(Exception):
    """A failure that the user can act on. The message is shown as it stands, without a traceback."""

    exit_code = 1


class RunFailed(KdrayError):
    """The run itself failed: a worker raised or died more often than `scale.max_failures` allows."""


class ConfigError(KdrayError):
    """The user's config, arguments or files are wrong."""

    exit_code = 2


class PluginError(KdrayError):
    """A plugin is broken, or two plugins claim one name."""

    exit_code = 3


class MismatchError(KdrayError):
    """A cache or a checkpoint does not belong to what it is asked for."""

    exit_code = 4


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """For calls into a plugin: its exceptions become a PluginError that says `what` went wrong, why and where.

    What kdray itself raises, or the plugin on purpose, passes, and so does a lack of memory.
    """
    try:
        yield
    except (KdrayError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; torch is not imported here
            raise
        raise PluginError(f"{what}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """The exception with its place, where it has one: the last line of the plugin's or the user's own code.

    That is the first code on its way which is neither kdray's nor torch's, and what lies beside it: a library that it
    calls is not where the mistake is.
    """
    import traceback

    if isinstance(error, KdrayError):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_machinery(f.filename)]
    beside = [f for f in frames if os.path.dirname(f.filename) == os.path.dirname(frames[0].filename)]
    place = f" ({beside[-1].filename}:{beside[-1].lineno})" if beside else ""
    return f"{type(error).__name__}: {error}{place}"


def _is_machinery(file: str) -> bool:
    own = (os.path.dirname(__file__), os.path.dirname(importlib.__file__))
    return file.startswith(("<frozen ", *own)) or f"{os.sep}torch{os.sep}" in file


def did_you_mean(name: str, known) -> str:
    """' Did you mean 'x'?' for the nearest of `known`, else the whole list when it is short, else nothing."""
    from difflib import get_close_matches

    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == name.lower()]
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(known)}." if 0 < len(known) <= 40 else ""
