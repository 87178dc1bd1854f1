"""Bad files of every kind, some of each: `python -m chaos.fuzz` takes many."""

import mmap
import os
import time

import pytest
from hypothesis import strategies as st

from chaos.fuzz.judge import MARKER, Fault, Target, fuzz, judge
from chaos.fuzz.targets import TARGETS
from kdray.errors import ConfigError

EXAMPLES = 80


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_bad_file_is_refused_with_its_name(target, tmp_path):
    seen = []
    fuzz(target, int(EXAMPLES * target.share), tmp_path, seen.append)
    assert len(seen) >= int(EXAMPLES * target.share)


def crash(*_):
    raise KeyError("name")


def nameless(*_):
    raise ConfigError("something is wrong")


def work(*_):
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass


def fill(*_):
    with mmap.mmap(-1, 600 << 20) as memory:  # of the system: what malloc gives may have been there before
        for page in range(0, len(memory), 4096):
            memory[page] = 1


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (crash, "KeyError"),
        (nameless, "names no file"),
        (lambda *_: os.mkdir(MARKER), "was run"),
        (lambda *_: time.sleep(60), "no answer"),
        (work, "s of work"),
        (fill, "MiB of memory"),
    ],
)
def test_the_judge_sees(read, fault, tmp_path, monkeypatch):
    if fault == "no answer":
        monkeypatch.setattr("chaos.fuzz.judge.PATIENCE", 2)
    if fault == "s of work":
        monkeypatch.setattr("chaos.fuzz.judge.CPU_SECONDS", 0.3)
    with pytest.raises(Fault, match=fault):
        judge(Target("bad", st.none(), read, ("file",)), None, tmp_path)
