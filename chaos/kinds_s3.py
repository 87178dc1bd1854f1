"""The faults of a cache in an object store: a real server of S3's protocol (moto), which goes and returns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from random import Random

from chaos.lab import STEPS, Lab

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos"}


class Server:
    """In a process of its own, which answers one word a line: stop, start, names (of the objects)."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        port = self.process.stdout.readline().strip()
        self.url = f"s3://caches/one?scheme=http&endpoint_override=127.0.0.1:{port}&allow_bucket_creation=true"

    def ask(self, what: str) -> list[str]:
        print(what, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().split()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


_SERVER = """
import sys
from moto.backends import get_backend
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
port = server.get_host_and_port()[1]
print(port, flush=True)
for line in sys.stdin:
    match line.strip():
        case "stop":
            server.stop()
        case "start":
            server = ThreadedMotoServer("127.0.0.1", port=port, verbose=False)
            server.start()
        case "names":
            buckets = [b for of in get_backend("s3").values() for b in of["aws"].buckets.values()]
            print(*(name for bucket in buckets for name in bucket.keys), end="")
    print(flush=True)
"""


def _credentials() -> None:
    os.environ.update(CREDENTIALS)


def store_goes_while_it_is_filled(lab: Lab, chance: Random) -> str:
    """The server ends once some shards are there, and comes back with what it had."""
    objects, seconds = chance.randint(0, len(lab.truth.cache())), chance.choice([0.2, 1.0, 5.0])
    with Server() as server:
        asked = ("precompute", "cached.yaml", f"teacher.cache.path={server.url}")
        command = lab.command(*asked, first=_credentials)
        command.wait(lambda: len(server.ask("names")) >= objects)
        server.ask("stop")
        time.sleep(seconds)
        server.ask("start")
        command.ends(0, 1, 2)
        there = len(server.ask("names"))
        lab.done(*asked, first=_credentials)
        names = {name.removeprefix("one/") for name in server.ask("names")}
        assert names == set(lab.truth.cache()), "other objects than files of the unbroken cache"
        lab.done("cache", "verify", server.url, first=_credentials)
    return f"at {objects} objects, for {seconds} s, exit {command.code}, gone on from {there}"


def store_goes_while_it_is_read(lab: Lab, chance: Random) -> str:
    """The server ends inside a step of a run that reads from it, and comes back."""
    step, seconds = chance.randrange(STEPS), chance.choice([0.2, 1.0, 5.0])
    with Server() as server:
        cache = f"teacher.cache.path={server.url}"
        lab.done("precompute", "cached.yaml", cache, first=_credentials)
        lab.order("pause", step)
        command = lab.command("train", "cached.yaml", cache, "--name", "cached", first=_credentials)
        command.wait((lab.path / "done.json").exists)
        server.ask("stop")
        time.sleep(seconds)
        server.ask("start")
        command.ends(0, 1, 2, 4)
        said = lab.recover("cached", "cached.yaml", first=_credentials)
    return f"step {step}, for {seconds} s, exit {command.code}, {said}"


KINDS = {
    "S3 goes and returns: precompute": (store_goes_while_it_is_filled, 1),
    "S3 goes and returns: run": (store_goes_while_it_is_read, 1),
}
