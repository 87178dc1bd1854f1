"""How long it takes until something is trained: `python benchmarks/startup.py [--rounds N]`.

Four commands, in turns, since other work on the machine comes and goes; wall seconds of each from the start of its
process, medians, and CPU seconds of the process itself beside them, which depend less on that work:

help    `kdray --help`, to its end
here    `kdray train --num-workers 0`, to the first step of a small network on digits
ray     the same with two workers
bare    a Ray Train function with two workers over gloo: an all_reduce and a step of the same network, and nothing else

Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = """
name: startup
data: {name: digits, batch_size: 64, augment: [{crop: {padding: 1}}]}
student: {model: convnet, widths: [8, 16]}
losses: {ce: {}}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
schedule: {epochs: 1}
engine: {log_every: 1, precision: fp32}
"""
KDRAY = [sys.executable, "-m", "kdray"]
TRAIN = [*KDRAY, "train", "startup.yaml", "--num-workers"]
COMMANDS = {
    "help": [*KDRAY, "--help"],
    "here": [*TRAIN, "0"],
    "ray": [*TRAIN, "2"],
    "bare": [sys.executable, __file__, "--bare"],
}


def bare() -> None:
    """What a run with workers is compared with. It writes the row that is waited for."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    here = os.getcwd()
    TorchTrainer(
        step_of_a_worker,
        train_loop_config={"file": os.path.join(here, "metrics.jsonl")},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="bare", storage_path=here),
    ).fit()


def step_of_a_worker(config: dict) -> None:
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist
    from torch import nn

    dist.all_reduce(torch.ones(8))
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    network = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    loss = nn.functional.cross_entropy(network(torch.rand(32, 1, 8, 8)), torch.arange(32) % 10)
    loss.backward()
    optimizer.step()
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["file"]).write_text(json.dumps({"kind": "step", "loss": float(loss)}) + "\n")


def measured(name: str) -> dict[str, float]:
    """Until the row of the first step is there, or to the end where there is none: wall, and cpu of the process without
    its children, which Ray's are."""
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        Path(folder, "startup.yaml").write_text(CONFIG)
        began = time.monotonic()
        process = subprocess.Popen(
            COMMANDS[name], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        cpu, wall = 0.0, None
        while process.poll() is None:
            if wall is None:
                cpu = _cpu_seconds(process.pid) or cpu
            if wall is None and any('"kind": "step"' in f.read_text() for f in Path(folder).rglob("metrics.jsonl")):
                wall = time.monotonic() - began
            time.sleep(0.005 if name == "help" else 0.02)
        ended = time.monotonic() - began
        if process.returncode or (wall is None and name != "help"):
            raise SystemExit(f"{name} failed:\n{process.stderr.read()}")
    return {"wall": ended if wall is None else wall, "cpu": cpu}


def _cpu_seconds(pid: int) -> float:
    """0 of one that has ended."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "startup.json")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        return bare()
    rounds = []
    for number in range(given.rounds):
        rounds.append({name: measured(name) for name in given.only} | {"load": os.getloadavg()[0]})
        print(number + 1, {k: v if k == "load" else round(v["wall"], 2) for k, v in rounds[-1].items()}, flush=True)
        given.out.write_text(json.dumps(summary(rounds, given.only), indent=2) + "\n")
    found = summary(rounds, given.only)
    for name, one in found["medians"].items():
        print(f"{name:5} {one['wall']:6.2f} s wall, {one['cpu']:6.2f} s of CPU")
    if "ray / bare" in found:
        print(f"ray / bare {found['ray / bare']:.2f}, the median of the rounds' ratios")


def summary(rounds: list[dict], names: list[str]) -> dict:
    median = statistics.median
    found = {
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "medians": {name: {key: median(one[name][key] for one in rounds) for key in ("wall", "cpu")} for name in names},
    }
    if {"ray", "bare"} <= set(names):
        found["ray / bare"] = median(one["ray"]["wall"] / one["bare"]["wall"] for one in rounds)
    return {**found, "rounds": rounds}


if __name__ == "__main__":
    main()
