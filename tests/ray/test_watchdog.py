"""A worker that stands still tells where, or the one that waits for it does."""

import ctypes
import time

import pytest

from kdray.launch import watchdog
from kdray.launch.watchdog import Watchdog
from kdray.launch.worker import failures, write_failure


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE", 0.5)


def until(told, seconds=20.0):
    end = time.monotonic() + seconds
    while not told() and time.monotonic() < end:
        time.sleep(0.05)
    return told()


def test_signs_of_life(tmp_path):
    with Watchdog(tmp_path, 0, 2, patience=0.4) as dog:
        for _ in range(20):
            dog.alive()
            time.sleep(0.05)
    assert not list(tmp_path.iterdir())


def test_the_start_may_take_longer(tmp_path):
    with Watchdog(tmp_path, 0, 2, patience=0.2):
        time.sleep(1)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_hangs(tmp_path):
    with Watchdog(tmp_path, 1, 2, patience=0.2) as dog:
        dog.alive()
        (entry,) = until(lambda: failures(tmp_path))
    assert entry["final"] and entry["type"] == "RunFailed" and entry["message"].startswith("worker 1 on ")
    assert "test_watchdog.py" in entry["message"] and "test_watchdog.py" in (tmp_path / "worker-1.stack").read_text()


def test_a_worker_that_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "is_machinery", lambda file: True)  # as in a collective operation
    with Watchdog(tmp_path, 0, 2, patience=0.2) as dog:
        dog.alive()
        assert until(lambda: any(entry["final"] for entry in failures(tmp_path)))
    (entry,) = failures(tmp_path)
    assert entry["message"].startswith("worker 1 gives no sign of life, and worker 0 waits")


def test_a_worker_that_waits_leaves_the_word_to_the_one_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "is_machinery", lambda file: True)
    with Watchdog(tmp_path, 0, 2, patience=0.2) as dog:
        dog.alive()
        assert until(lambda: failures(tmp_path))
        write_failure(tmp_path, 1, ValueError("the cause"))
        time.sleep(1)
    assert [(entry["rank"], entry["final"]) for entry in failures(tmp_path)] == [(1, True), (0, False)]


def test_a_worker_that_lets_nobody_else_run(tmp_path):
    """Code outside of Python that keeps the interpreter to itself: the stack is there all the same."""
    with Watchdog(tmp_path, 0, 1, patience=0.5) as dog:
        dog.alive()
        time.sleep(0.3)
        ctypes.PyDLL(None).usleep(3_000_000)
        text = (tmp_path / "worker-0.stack").read_text()
    assert "test_a_worker_that_lets_nobody_else_run" in text
