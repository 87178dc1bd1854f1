"""What the workers of a run exchange at a step, by config, and what a step then takes on many of them.

    python benchmarks/traffic.py count [CONFIG…] [--batch 8]        # writes results/traffic.json, some minutes
    python benchmarks/traffic.py predict methods/cc --rate 100000 --floor 8 --bandwidth 25 --latency 30
    python benchmarks/traffic.py check [CONFIG…] [--rounds 5]       # writes results/traffic-check.json

CONFIG is a file of yours, or a path under configs/ without its ending. `count`: two processes (gloo) run steps of the
main loop of each config, its own losses and networks on random pictures of 32×32 and 100 classes, and note what goes
through torch.distributed. `predict`: the model below with these bytes and your figures. `check`: the model beside steps
of one and of two processes here, in turns.

The model: nothing overlaps, so that a step takes

    T(W) = max(floor, B / W / rate) + Σ over its collectives (latency + bytes that a worker sends / bandwidth)

with B pictures in the global batch. Of n bytes, a worker sends (W − 1) / W · n where they are gathered, and twice that
where they are summed (a ring). Every worker adds its own batch-norm vectors to a gather: n grows with W there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from steps import ROOT, Steps, config_of, machine, registry_with_random_pictures
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from kdray.config.schema import Config
from kdray.engine.context import Context
from kdray.engine.sums import Sums
from kdray.registry import Registry

RESULTS = Path(__file__).parent / "results"
WITHOUT = {"base", "quickstart"}
"""One is there to be extended; the other has a data set and networks of its own."""
KINDS = {
    "kdray.engine.batchnorm._gather": "norm",
    "kdray.engine.context._gather": "gather",
    "kdray.engine.context.backward": "backward",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks._allreduce_fut": "gradient",
    "kdray.engine.context.sum": "log",
}
"""What a collective is for, by the function that calls it."""

Counts = dict[str, dict[str, float]]
"""By kind, `calls` and `bytes` of a step, whatever the number of workers. norm: statistics of batch normalisation,
bytes of one worker's vectors. gather: rows of the losses, bytes of a picture of the global batch; backward: their
gradients, likewise. gradient: DistributedDataParallel's buckets (the heads of semckd grow with the batch: count it at
yours). used: its map of the parameters that were used. log: terms and their check, a step's share of a row of the
log."""


# -- counting ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Calls, and bytes that one worker gives, of the collectives that are called meanwhile. KeyError for a caller that
    KINDS does not know."""
    found: Counts = {kind: {"calls": 0, "bytes": 0} for kind in KINDS.values()}

    def counting(collective, place: int):
        def call(*args, **kwargs):
            caller = sys._getframe(1)
            kind = found[KINDS[f"{caller.f_globals['__name__']}.{caller.f_code.co_name}"]]
            kind["calls"] += 1
            kind["bytes"] += args[place].nbytes
            return collective(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name, place in (("all_gather", 1), ("all_reduce", 0), ("broadcast", 0)):
            stack.enter_context(patch.object(dist, name, counting(getattr(dist, name), place)))
        yield found


def count(config: Config, registry: Registry, folder: Path, context: Context) -> dict:
    """Every worker calls it. Raises RuntimeError where a step does not repeat the one before."""
    steps = Steps(config, registry, folder, context=context)
    training, every = steps.training, config.engine.log_every
    training.wrapped.register_comm_hook(None, allreduce_hook)  # what DDP does by itself, but in Python
    steps.run(1)  # what happens once: constants of losses, the order of DDP's buckets
    with counted() as found:
        terms = steps.run(1)
    with counted() as again:
        steps.run(1)
    if found != again:
        raise RuntimeError(f"{config.name}: a step exchanges {found}, the next {again}")
    with counted() as row:
        sums = Sums(context, {})
        for _ in range(every):
            sums.add(terms, 1)
        sums.first_lost(), training._log_step(terms, 1)
    found["log"] = {what: number / every for what, number in row["log"].items()}
    found["gather"]["bytes"] *= context.world_size / config.data.batch_size
    found["backward"]["bytes"] /= config.data.batch_size  # what is summed has the rows of the global batch
    parameters = [p for p in training.objective.parameters() if p.requires_grad]
    # One int32 a parameter, summed in C++, where DDP looks for those that a step did not use.
    looks = training.wrapped.find_unused_parameters
    found["used"] = {"calls": int(looks), "bytes": 4 * len(parameters) * looks}
    return {
        "student": config.student.model,
        "parameters": sum(p.numel() for p in parameters),
        "student parameters": sum(p.numel() for p in training.objective.student.parameters() if p.requires_grad),
        "step": found,
    }


def counting(rank: int, configs: dict[str, Config], folder: Path) -> None:
    context, registry, rows = join(rank, folder), registry_with_random_pictures(), []
    for name, config in configs.items():
        rows.append({"config": name, **count(config, registry, folder, context)})
        gc.collect()
        if rank == 0:
            print(f"{name:28} {rows[-1]['step']}", file=sys.stderr, flush=True)
    if rank == 0:
        (folder / "answer.json").write_text(json.dumps(rows))


def counts(names: list[str], registry: Registry, batch: int) -> list[dict]:
    configs = {name: config_of(path(name), registry, f"data.batch_size={batch}") for name in names}
    return in_two_processes(counting, configs)


def join(rank: int, folder: Path) -> Context:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    return Context(rank, 2)


def in_two_processes(work, *args) -> list[dict]:
    """work(rank, *args, folder) in each; what the first one wrote as answer.json."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (*args, Path(folder)), nprocs=2)
        return json.loads((Path(folder) / "answer.json").read_text())


def table(rows: list[dict]) -> str:
    """Configs with equal traffic share a line."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        kinds, own = row["step"], row["parameters"] - row["student parameters"]
        cells = [row["student"]]
        cells += [f"{kinds[k]['bytes']:,.0f} B in {kinds[k]['calls']}" for k in ("gather", "backward")]
        cells += [f"{kinds['gradient']['bytes'] / 1e6:.2f} MB", f"{4 * own / 1e6:.2f} MB"]
        cells += [f"{kinds['norm']['calls']}, {kinds['norm']['bytes'] / 1e3:.1f} kB"]
        groups.setdefault(" | ".join(cells).replace("0 B in 0", ""), []).append(row["config"])
    head = ["| configs | student | gathers, a picture | their backward, a picture | gradient | of it heads | norms |"]
    return "\n".join([*head, "|" + " --- |" * 7, *(f"| {', '.join(names)} | {key} |" for key, names in groups.items())])


# -- the model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    rate: float
    """Pictures a second of one device, of a batch that fills it."""
    floor: float
    """Seconds that a step takes, however few its pictures: on a GPU, to launch its kernels."""
    bandwidth: float
    """Bytes a second that a worker sends, while it receives as many."""
    latency: float
    """Seconds of a collective of few bytes."""


def seconds(step: Counts, on: Machine, workers: int, batch: int) -> dict[str, float]:
    """Of a step of `batch` pictures over all workers: of its computing, and of each kind of collective."""
    found = {"compute": max(on.floor, batch / workers / on.rate)}
    if workers == 1:
        return found
    passes = {"norm": workers, "gather": batch, "backward": 2 * batch, "gradient": 2, "used": 2, "log": 2}
    for kind, times in passes.items():
        sent = (workers - 1) / workers * times * step[kind]["bytes"]
        found[kind] = step[kind]["calls"] * on.latency + sent / on.bandwidth
    return found


def counts_of(name: str) -> Counts:
    rows = json.loads((RESULTS / "traffic.json").read_text())["configs"]
    found = [row for row in rows if row["config"] == name] or counts([name], registry_with_random_pictures(), 8)
    return found[0]["step"]


def predict(name: str, on: Machine, batch: int, local_norm: bool, a_worker: bool, alone: float | None) -> None:
    step = counts_of(name)
    if local_norm:
        step["norm"] = {"calls": 0, "bytes": 0}
    print("| workers | pictures a step | ms | compute | norms | losses | gradient | pictures/s | efficiency |")
    print("| ---: " * 9 + "|")
    for workers in (1, 2, 4, 8, 16, 32, 64):
        pictures = batch * workers if a_worker else batch
        ms = {kind: 1e3 * s for kind, s in seconds(step, on, workers, pictures).items()}
        if workers == 1 and alone:
            ms = {"compute": 1e3 * pictures / alone}
        total, rate = sum(ms.values()), 1e3 * pictures / sum(ms.values())
        alone = alone or rate
        parts = ms["compute"], ms.get("norm", 0), ms.get("gather", 0) + ms.get("backward", 0), ms.get("gradient", 0)
        cells = " | ".join(f"{x:.2f}" for x in (total, *parts))
        print(f"| {workers} | {pictures:,} | {cells} | {rate:,.0f} | {rate / alone / workers:.0%} |")


# -- the model beside a measurement ------------------------------------------------------------------------------------


def a_call(collective, times: int) -> float:
    """Seconds, the median of so many."""
    found = []
    for _ in range(times):
        dist.barrier()
        began = time.perf_counter()
        collective()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def link() -> tuple[float, float]:
    """Bandwidth (bytes a second that a worker sends) and latency (seconds) of these two processes."""
    small, large = torch.zeros(64), torch.zeros(1 << 20)
    latency = a_call(lambda: dist.all_gather([torch.empty_like(small) for _ in range(2)], small), 40)
    return large.nbytes / (a_call(lambda: dist.all_reduce(large), 10) - latency), latency


def checking(rank: int, configs: dict[str, tuple[Config, Config]], rounds: int, count: int, folder: Path) -> None:
    context, registry, answer = join(rank, folder), registry_with_random_pictures(), []
    for name, (whole, half) in configs.items():
        kinds = {"together": Steps(whole, registry, folder, context=context), "apart": Steps(half, registry, folder)}
        if rank == 0:
            kinds["alone"] = Steps(whole, registry, folder)
        measured: dict[str, list[float]] = {kind: [] for kind in ("alone", "apart", "together", "bandwidth", "latency")}
        for number in range(rounds + 1):  # the first one is to warm up
            now = {}
            for kind in ("alone", "apart", "together"):
                dist.barrier()
                if kind in kinds:
                    now[kind] = kinds[kind].seconds(count)
            now["bandwidth"], now["latency"] = link()
            for kind, value in now.items() if number else ():
                measured[kind].append(value)
        answer.append({"config": name, **{kind: statistics.median(found) for kind, found in measured.items() if found}})
        del kinds
        gc.collect()
    if rank == 0:
        (folder / "answer.json").write_text(json.dumps(answer))


def check(names: list[str], registry: Registry, batch: int, rounds: int, count: int) -> list[dict]:
    """`alone`: seconds a step of one process; `apart`: of two at once, each half of the batch and nothing exchanged;
    `together`: of two workers; beside what the model says of these, from the pace of `alone` and of `apart`."""
    sizes = (batch, batch // 2)
    configs = {n: tuple(config_of(path(n), registry, f"data.batch_size={size}") for size in sizes) for n in names}
    rows = in_two_processes(checking, configs, rounds, count)
    for row in rows:
        for kind, pace in (("alone", batch / row["alone"]), ("apart", batch / 2 / row["apart"])):
            on = Machine(pace, 0.0, row["bandwidth"], row["latency"])
            row[f"predicted from {kind}"] = sum(seconds(counts_of(row["config"]), on, 2, batch).values())
        print(", ".join(f"{k} {v if k == 'config' else f'{v:.4g}'}" for k, v in row.items()))
    return rows


# ----------------------------------------------------------------------------------------------------------------------


def path(name: str) -> Path:
    return Path(name) if Path(name).is_file() else ROOT / "configs" / f"{name}.yaml"


def all_names() -> list[str]:
    folders = (ROOT / "configs" / folder for folder in (".", "methods", "repdistiller"))
    files = [file.relative_to(ROOT / "configs") for folder in folders for file in sorted(folder.glob("*.yaml"))]
    return [str(file.with_suffix("")) for file in files if file.stem not in WITHOUT]


def write(file: str, **result) -> None:
    (RESULTS / file).write_text(json.dumps({**machine(), **result}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("count")
    verb.add_argument("configs", nargs="*")
    verb.add_argument("--batch", type=int, default=8)
    verb = verbs.add_parser("predict")
    verb.add_argument("config")
    verb.add_argument("--rate", type=float, required=True, help="pictures a second of one device")
    verb.add_argument("--floor", type=float, default=0.0, help="milliseconds of a step however small")
    verb.add_argument("--bandwidth", type=float, required=True, help="GB a second that a worker sends")
    verb.add_argument("--latency", type=float, required=True, help="microseconds of a collective of few bytes")
    verb.add_argument("--batch", type=int, default=64, help="pictures of the global batch")
    verb.add_argument("--a-worker", action="store_true", help="--batch is of each worker: the global batch grows")
    verb.add_argument("--alone", type=float, help="pictures a second of one worker, where only its steps are recorded")
    verb.add_argument("--local-norm", action="store_true", help="engine.batch_norm: local")
    verb = verbs.add_parser("check")
    verb.add_argument("configs", nargs="*", default=["repdistiller/kd", "repdistiller/crd"])
    verb.add_argument("--batch", type=int, default=64)
    verb.add_argument("--rounds", type=int, default=5)
    verb.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    if args.verb == "predict":
        on = Machine(args.rate, args.floor / 1e3, args.bandwidth * 1e9, args.latency / 1e6)
        return predict(args.config, on, args.batch, args.local_norm, args.a_worker, args.alone)
    registry = registry_with_random_pictures()
    if args.verb == "check":
        rows = check(args.configs, registry, args.batch, args.rounds, args.steps)
        return write("traffic-check.json", batch=args.batch, rounds=args.rounds, steps=args.steps, configs=rows)
    names = args.configs or all_names()
    rows = in_two_processes(counting, {n: config_of(path(n), registry, f"data.batch_size={args.batch}") for n in names})
    print(table(rows))
    if not args.configs:
        write("traffic.json", batch=args.batch, configs=rows)


if __name__ == "__main__":
    main()
