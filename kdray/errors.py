"""Every error that kdray raises on purpose: what is wrong, where, and what to do, with the exit code of the command
line."""

from __future__ import annotations


class KdrayError(Exception):
    """A failure that the user can act on. The message is shown as it stands, without a traceback."""

    exit_code = 1


class RunFailed(KdrayError):
    """The run itself failed: a worker raised or died more often than `scale.max_failures` allows. details: what is too
    long for the message; it goes into the run's folder."""

    def __init__(self, message: str, **details):
        super().__init__(message)
        self.details = details

    def __reduce__(self):
        return type(self), self.args, {"details": self.details}


class ConfigError(KdrayError):
    """The user's config, arguments or files are wrong."""

    exit_code = 2


class PluginError(KdrayError):
    """A plugin is broken, or two plugins claim one name."""

    exit_code = 3


class MismatchError(KdrayError):
    """A cache or a checkpoint does not belong to what it is asked for."""

    exit_code = 4


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has: its checkpoint is written."""


def did_you_mean(name: str, known) -> str:
    """' Did you mean 'x'?' for the nearest of `known`, else the whole list when it is short, else nothing."""
    from difflib import get_close_matches

    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == name.lower()]
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(known)}." if 0 < len(known) <= 40 else ""
