"""A Ray that asks for a token, as `ray start` does by itself once a token lies in the home folder (Ray 2.60)."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.ray.clusters import wait_until


@pytest.mark.thorough
def test_who_joins_without_it_is_told(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"}
    environment |= {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    start = f"start --head --block --num-cpus=1 --include-dashboard=false --port={port}"
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start.split()], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: listens(port), "the head listens")
        command = [sys.executable, "-m", "kdray", "doctor", "--num-workers", "1", "--address", f"127.0.0.1:{port}"]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    finally:
        head.terminate()
        head.wait(timeout=60)
    assert result.returncode == 2, result.stderr
    assert result.stderr.rstrip().endswith("; if it wants a token, set RAY_AUTH_MODE=token"), result.stderr


def listens(port: int) -> bool:
    time.sleep(0.2)
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
