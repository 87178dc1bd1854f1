"""The conformance kit: does a distiller keep the contract?

from kdray.testing import CHECKS, check_distiller

@pytest.mark.parametrize("check", CHECKS)
def test_my_loss(check):
    check_distiller("my_loss", checks=[check])
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy
import torch

from ..blame import cause
from ..distiller import Distiller
from ..errors import ConfigError, did_you_mean
from ..registry import Registry
from .checks import CHECKS
from .rehearsal import Failed
from .subject import Subject


@dataclass(frozen=True)
class Verdict:
    """check: its name · question: what it asks · passed · remark: why not, or what was found."""

    check: str
    question: str
    passed: bool
    remark: str = ""


def check_distiller(
    distiller: str | type[Distiller], options: Mapping | None = None, *, checks: Iterable[str] | None = None
) -> list[Verdict]:
    """Run `checks` (all of `CHECKS` when absent) on a distiller, by name or class, on made-up networks of its requires.

    Raises AssertionError that names every check that failed, and why.
    """
    verdicts = examine(distiller, options, checks=checks)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        name = distiller if isinstance(distiller, str) else distiller.__name__
        checks = {remark: [v.check for v in failed if v.remark == remark] for remark in (v.remark for v in failed)}
        lines = [f"{', '.join(names)}: {remark}" for remark, names in checks.items()]
        raise AssertionError("\n".join([f"{name} does not keep the contract", *lines]))
    return verdicts


def examine(
    distiller: str | type[Distiller], options: Mapping | None = None, *, checks: Iterable[str] | None = None
) -> list[Verdict]:
    """As `check_distiller`, without raising."""
    cls = Registry.default().get("distillers", distiller).cls if isinstance(distiller, str) else distiller
    chosen = list(CHECKS if checks is None else checks)
    for name in chosen:
        if name not in CHECKS:
            raise ConfigError(f"there is no check '{name}'.{did_you_mean(name, CHECKS)}")
    if "two_workers" in chosen:
        from .workers import workers

        workers().start()  # they get ready while the other checks run
    subject = _subject(cls, _Options(options or {}))
    with _quiet_machine():
        return [_judge(name, subject) for name in chosen]


@contextmanager
def _quiet_machine():
    """One thread, since the tensors are tiny and the workers compute too; the caller's random state stays."""
    threads, states = torch.get_num_threads(), (torch.get_rng_state(), random.getstate(), numpy.random.get_state())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])


class _Options(dict):
    """Options that stand for themselves by what they say."""

    def __hash__(self):
        return hash(repr(self))


@lru_cache(maxsize=2)
def _subject(cls, options):
    """Kept for the next check of the same distiller."""
    return Subject(cls, options)


def _judge(name: str, subject: Subject) -> Verdict:
    check = CHECKS[name]
    question = inspect.getdoc(check)
    try:
        return Verdict(name, question, True, check(subject))
    except Failed as error:
        return Verdict(name, question, False, str(error))
    except Exception as error:
        return Verdict(name, question, False, cause(error))
