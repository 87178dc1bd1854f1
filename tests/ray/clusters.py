"""Ray's own simulation of a cluster, and a node that has other files than this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdray.launch.session import SETTINGS, RaySession


@contextlib.contextmanager
def cluster(**settings: str):
    """A head without CPUs; nodes are added in the main thread (`add_node`)."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**SETTINGS, **settings}.items():
            patch.setenv(key, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield made
        finally:
            made.shutdown()


@contextlib.contextmanager
def far_node(address: str, hidden: Path):
    """A node of one CPU that does not see the files in `hidden`: it has a mount namespace of its own."""
    unshare = shutil.which("unshare")
    own = [unshare, "-m"] if os.geteuid() == 0 else [unshare, "-Urm"]
    try:
        subprocess.run([*own, "mount", "-t", "tmpfs", "none", hidden], check=True, capture_output=True)
    except (OSError, TypeError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody have a mount namespace of his own")
    start = f"mount -t tmpfs none {hidden} && exec {sys.executable} -m ray.scripts.scripts start --block"
    script = f"{start} --address={address} --num-cpus=1 --disable-usage-stats"
    process = subprocess.Popen([*own, "sh", "-c", script], stdout=subprocess.DEVNULL, cwd="/")
    try:
        yield process
    finally:
        process.terminate()  # ray takes its own processes with it
        process.wait(timeout=30)


@contextlib.contextmanager
def two_nodes(hidden: Path):
    """A session in a cluster of two nodes with one CPU each; one of them does not see what is in `hidden`."""
    hidden.mkdir()
    with cluster() as two:
        two.add_node(num_cpus=1)
        with far_node(two.address, hidden), RaySession(two.address) as session:
            wait_until(lambda: len(session.addresses()) == 2, "the far node joins")
            yield session


def wait_until(true, what: str, seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def somebody():
    """Another user of the cluster, who holds a CPU."""
    import ray

    @ray.remote(num_cpus=1)
    class Somebody:
        def there(self):
            pass

    found = Somebody.remote()
    ray.get(found.there.remote())
    return found
