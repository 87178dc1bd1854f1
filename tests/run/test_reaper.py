"""What a killed process has started ends too; what a living one has started does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kdray.launch import reaper

CODE = """
import subprocess, sys, time
from kdray.launch import reaper
with reaper.reaping():
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(child.pid, flush=True)
    if sys.argv[1] == "stays":
        time.sleep(600)
print(child.poll(), flush=True)
child.kill()
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def started(what: str):
    process = subprocess.Popen([sys.executable, "-c", CODE, what], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_a_killed_process_takes_along_what_it_started():
    process, child = started("stays")
    assert alive(child)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + reaper.GRACE + 60
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_at_the_end_nothing_is_killed():
    process, _ = started("ends")
    assert process.communicate()[0].strip() == "None"
    assert process.returncode == 0 and reaper.MARK not in os.environ
