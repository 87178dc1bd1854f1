"""What a killed process has started ends too; what a living one has started does not. The folder of its session goes,
unless it has failed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdray.launch import reaper

CODE = """
import subprocess, sys, time
from kdray.launch import reaper
try:
    with reaper.reaping() as tell:
        tell(sys.argv[2])
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print(child.pid, flush=True)
        if sys.argv[1] == "stays":
            time.sleep(600)
        if sys.argv[1] == "fails":
            raise ValueError
finally:
    print(child.poll(), flush=True)
    child.kill()
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def session(tmp_path) -> Path:
    (folder := tmp_path / "session" / "logs").mkdir(parents=True)
    (folder / "raylet.out").touch()
    return folder.parent


def started(what: str, session: Path):
    process = subprocess.Popen([sys.executable, "-c", CODE, what, session], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_a_killed_process_takes_along_what_it_started(session):
    process, child = started("stays", session)
    assert alive(child)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + reaper.GRACE + 60
    while alive(child) or session.exists():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.parametrize("how", ["ends", "fails"])
def test_at_the_end_nothing_is_killed(session, how):
    process, _ = started(how, session)
    assert process.communicate()[0].strip() == "None"
    assert reaper.MARK not in os.environ
    assert session.exists() == (how == "fails") == bool(process.returncode)
