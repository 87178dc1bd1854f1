"""The faults of runs with two Ray workers, and of clusters."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from random import Random

from chaos.cluster import Cluster
from chaos.lab import MARK, STEPS, Lab
from kdray.run.folder import RunFolder

TRAIN = ("train", "split.yaml", "--name", "split")


def _recover(lab: Lab, **how) -> str:
    return lab.recover("split", "split.yaml", started=True, **how)


def _steps(lab: Lab) -> int:
    try:
        return (lab.run("split").path / "metrics.jsonl").read_bytes().count(b'"kind": "step"')
    except OSError:
        return 0


def worker_killed(lab: Lab, chance: Random) -> str:
    """SIGKILL of one of two workers inside a step: the group goes on."""
    step, rank = chance.randrange(STEPS), chance.randrange(2)
    lab.order("kill", step, rank, signal=signal.SIGKILL)
    lab.done(*TRAIN, started=True)
    lab.same_run("split")
    return f"worker {rank} at step {step}"


def driver_killed(lab: Lab, chance: Random) -> str:
    """SIGKILL of the driver: the workers end, the run is resumed."""
    command, step = lab.command(*TRAIN, started=True), chance.randrange(STEPS)
    command.wait(lambda: _steps(lab) >= step)
    if command.poll() is None:
        os.kill(command.pid, signal.SIGKILL)
    command.ends(-9, 0)
    lab.clean_processes()
    return f"after step {step}, {_recover(lab)}"


def driver_asked(lab: Lab, chance: Random) -> str:
    """SIGTERM of the driver."""
    command, step = lab.command(*TRAIN, started=True), chance.randrange(STEPS)
    command.wait(lambda: _steps(lab) >= step)
    command.kill(signal.SIGTERM)
    command.ends(130, 0, saying="kdray resume split")
    return f"after step {step}, exit {command.code}, {_recover(lab)}"


def one_rank_is_ill(lab: Lab, chance: Random) -> str:
    """A loss raises, returns a wrong shape or no number on one of two workers: both end, with its own message."""
    step, rank, do = chance.randrange(STEPS), chance.randrange(2), chance.choice(["raise", "shape", "nan"])
    lab.order(do, step, rank)
    command = lab.command(*TRAIN, started=True)
    if do == "nan":
        command.ends(1, saying=f"at step {step}")
    else:
        command.ends(3, saying="loss 'sick'")
    return f"{do} on worker {rank} at step {step}, {_recover(lab)}"


def one_rank_hangs(lab: Lab, chance: Random) -> str:
    """A loss does not return on one of two workers: the run ends, and names the worker and the line."""
    step, rank = chance.randrange(STEPS), chance.randrange(2)
    lab.order("hang", step, rank)
    lab.command(*TRAIN, "scale.hang_after=20", started=True).ends(1, saying="sick.py")
    return f"worker {rank} at step {step}, {_recover(lab)}"


def one_rank_is_elsewhere(lab: Lab, chance: Random) -> str:
    """On one of two workers the clock jumps, or the generators of Python, numpy and torch are seeded anew."""
    step, rank = chance.randrange(STEPS), chance.randrange(2)
    if chance.random() < 0.5:
        what = {"do": "clock", "seconds": chance.uniform(-3e8, 3e8)}
    else:
        what = {"do": "seeds", "seed": chance.randrange(2**31)}
    lab.order(step=step, rank=rank, **what)
    lab.done(*TRAIN, started=True)
    lab.same_run("split")
    return f"{what['do']} on worker {rank} at step {step}"


def cacher_killed(lab: Lab, chance: Random) -> str:
    """SIGKILL of an actor of `kdray precompute` once it has begun."""
    command = lab.command("precompute", "cached.yaml", "--num-workers", "2", started=True)
    command.wait(lambda: _actors(lab) != [])
    time.sleep(chance.random() * 2)
    victims = _actors(lab)
    if victims:
        os.kill(chance.choice(victims), signal.SIGKILL)
    command.ends(0)
    lab.an_hour_later()
    lab.done("precompute", "cached.yaml")
    lab.same_cache()
    return f"{len(victims)} there"


def _actors(lab: Lab) -> list[int]:
    """The processes of the project that are at work for Ray."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            ours = f"{MARK}={lab.path}".encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours and title.startswith(b"ray::") and b"IDLE" not in title:
            found.append(int(folder.name))
    return found


# -- clusters --------------------------------------------------------------------------------------------------------


def node_killed(lab: Lab, chance: Random) -> str:
    """SIGKILL of the raylet of a node with a worker; there is another node to go on with."""
    cluster = Cluster(lab.path, 3, {MARK: str(lab.path)})
    try:
        step, rank = chance.randrange(STEPS - 8), chance.randrange(2)
        lab.order("pause", step)  # so that the run does not end before the node
        command = lab.command(*TRAIN, started=True, env=cluster.env)
        command.wait((lab.path / "done.json").exists)
        worker = json.loads((lab.run("split").path / f"worker-{rank}.json").read_text())["pid"]
        raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        assert b"raylet" in Path(f"/proc/{raylet}/cmdline").read_bytes()
        os.kill(raylet, signal.SIGKILL)
        command.ends(0)
        lab.same_run("split")
        _nothing_left(cluster)
    finally:
        cluster.kill()
    return f"that of worker {rank} at step {step}"


def head_restarted(lab: Lab, chance: Random) -> str:
    """SIGKILL of a whole cluster; a new one is started, and the run resumed there."""
    cluster = Cluster(lab.path, 2, {MARK: str(lab.path)})
    try:
        step = chance.randrange(STEPS - 8)
        lab.order("pause", step)
        command = lab.command(*TRAIN, started=True, env=cluster.env)
        command.wait((lab.path / "done.json").exists)
        cluster.kill()
        # Ray ends the process itself when its head has been away for a minute.
        assert command.wait() == 1 and ("error: " in command.text or "Failed to connect to GCS" in command.text)
        assert "Traceback (most recent call last)" not in command.text
        cluster = Cluster(lab.path, 2, {MARK: str(lab.path)})
        said = _recover(lab, env=cluster.env)
        _nothing_left(cluster)
    finally:
        cluster.kill()
    return f"at step {step}, {said}"


def head_of_search_restarted(lab: Lab, chance: Random) -> str:
    """SIGKILL of a whole cluster while the second of three trials trains; the search goes on in a new one."""
    cluster = Cluster(lab.path, 1, {MARK: str(lab.path)})
    try:
        epoch = chance.randrange(1, 40)
        second = lab.run("search").path / "trials" / "002"
        command = lab.command("tune", "search.yaml", "--name", "search", started=True, env=cluster.env)
        command.wait(lambda: second.exists() and len(RunFolder(second).rows("epoch")) >= epoch)
        cluster.kill()
        assert command.wait() == 1 and ("error: " in command.text or "Failed to connect to GCS" in command.text)
        assert "Traceback (most recent call last)" not in command.text
        begun = len(RunFolder(second).rows("epoch"))
        first = (second.parent / "001" / "metrics.jsonl").read_bytes()
        cluster = Cluster(lab.path, 1, {MARK: str(lab.path)})
        lab.done("tune", "--resume", "search", started=True, env=cluster.env)
        lab.same_search()
        assert (second.parent / "001" / "metrics.jsonl").read_bytes() == first, "a finished trial was begun again"
        _nothing_left(cluster)
    finally:
        cluster.kill()
    return f"after epoch {begun} of the second trial"


def _nothing_left(cluster: Cluster) -> None:
    until = time.monotonic() + 15
    while left := cluster.left():
        assert time.monotonic() < until, f"left in the cluster: {left}"
        time.sleep(0.5)


KINDS = {
    "Ray: kill -9 of a worker": (worker_killed, 3),
    "Ray: kill -9 of the driver": (driver_killed, 2),
    "Ray: SIGTERM of the driver": (driver_asked, 2),
    "Ray: a loss ill on one rank": (one_rank_is_ill, 3),
    "Ray: a loss hangs on one rank": (one_rank_hangs, 1),
    "Ray: clock or seeds of one rank": (one_rank_is_elsewhere, 1),
    "Ray: kill -9 of an actor of precompute": (cacher_killed, 1),
    "Ray: kill -9 of a raylet": (node_killed, 1),
    "Ray: the cluster dies and is restarted": (head_restarted, 1),
    "Ray: the cluster dies during a search": (head_of_search_restarted, 1),
}
