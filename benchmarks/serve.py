"""How many pictures a second `kdray serve` answers, and how long each waits:
`python benchmarks/serve.py RUN|FILE PICTURE`.

Clients of this process ask one picture after the other, each over its own connection that stays open, for some seconds;
the server is started anew for each setting. On the same machine, so clients take their share of the CPUs. Writes
benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIENTS = (1, 8, 32)
SETTINGS = ((1, 1), (1, 32), (2, 32))
"""Replicas, and most pictures of a batch."""


def ask(port: int, body: bytes, until: float, taken: list[float], wrong: list[int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.perf_counter() < until:
        start = time.perf_counter()
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        answer.read()
        taken.append(time.perf_counter() - start)
        if answer.status != 200:
            wrong.append(answer.status)
    connection.close()


def load(port: int, body: bytes, clients: int, seconds: float) -> dict:
    taken, wrong, start = [], [], time.perf_counter()
    threads = [threading.Thread(target=ask, args=(port, body, start + seconds, taken, wrong)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    p50, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
    return {
        "clients": clients,
        "requests": len(taken),
        "wrong": len(wrong),
        "per_second": len(taken) / wall,
        "p50_ms": 1000 * p50,
        "p95_ms": 1000 * p95,
    }


def served(what: str, body: bytes, replicas: int, max_batch: int, seconds: float) -> list[dict]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*(sys.executable, "-m", "kdray", "serve", what, "--port", str(port))]
    command += ["--replicas", str(replicas), "--max-batch", str(max_batch)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if "answers at" not in server.stdout.readline():
            raise SystemExit("the server did not start")
        load(port, body, 4, 2.0)  # warm
        return [
            {"replicas": replicas, "max_batch": max_batch, **load(port, body, clients, seconds)} for clients in CLIENTS
        ]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", metavar="RUN|FILE")
    arguments.add_argument("picture", type=Path)
    arguments.add_argument("--seconds", type=float, default=8.0)
    given = arguments.parse_args()
    body, rows = given.picture.read_bytes(), []
    for replicas, max_batch in SETTINGS:
        for row in served(given.what, body, replicas, max_batch, given.seconds):
            rows.append({**row, "load_average": os.getloadavg()[0]})
            print(json.dumps(rows[-1]), flush=True)
    found = {"what": Path(given.what).name, "cpus": os.cpu_count(), "machine": platform.machine(), "rows": rows}
    (ROOT / "benchmarks" / "results" / "serve.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
