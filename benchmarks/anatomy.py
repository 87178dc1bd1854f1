"""What a step's time goes into: the peers' step (peers.py), and kdray's of the same work with live and with stored
answers of the teacher.

    python benchmarks/anatomy.py [--precision fp32] [--steps 5]

CRD (bank, 16,384 negatives), WRN-40-2 to WRN-16-2 and ResNet-32x4 to ResNet-8x4, batch 64 of 50,000 random pictures,
one process with all cores, besides the 8 loader processes of the peers. Each kind runs by itself, some steps without a
profiler, whose mean is the time of a step, and then as many under torch's profiler, whose operators' own times are
shared out by what they do; `waiting, Python` is what is left of the step: the loader, and the interpreter. Besides, the
bare convolutions of the student, forward and backward, as they are laid out in kdray: what no trainer can go below.
Writes benchmarks/results/anatomy-PRECISION.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from answers import fill
from cache import PAIRS
from peers import BATCH, Distillation, Pictures
from steps import ROOT, Steps, config_of, machine, parts_of, registry_with_random_pictures
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from kdray.engine.allocator import keep_freed_memory
from kdray.teacher.setup import Place

WARM = 3
PARTS = {
    "convolutions": r"convolution",
    "batch norm": r"batch_?norm|BatchNorm",
    "products": r"::(add)?mm$|::bmm$|baddbmm|linear|einsum",
    "rows of the banks, copies": r"index|gather|scatter|copy_|cat$|take|sort|topk|unique|multinomial|randint|random_",
    "optimizer": r"sgd|foreach",
}
"""By what it does, the names of operators; all others are elementwise operations and sums."""


def milliseconds(run: Callable[[int], object], steps: int) -> float:
    """Of a step, after some that warm up."""
    run(WARM)
    began = time.perf_counter()
    run(steps)
    return 1e3 * (time.perf_counter() - began) / steps


def parts_of_step(run: Callable[[int], object], steps: int) -> dict[str, float]:
    """Milliseconds of a step, and of its parts."""
    found = {"a step": milliseconds(run, steps)}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(steps)
    shared = dict.fromkeys([*PARTS, "elementwise, sums"], 0.0)
    for operator in profiler.key_averages():
        part = next((part for part, names in PARTS.items() if re.search(names, operator.key)), "elementwise, sums")
        if operator.key.startswith(("aten::", "mkldnn::", "torch::")):
            shared[part] += operator.self_cpu_time_total / 1e3 / steps
    return found | shared | {"waiting, Python": found["a step"] - sum(shared.values())}


def peers(teacher: str, student: str) -> Callable[[int], None]:
    training = Distillation("crd", teacher, student, None, stage=False)
    batches = iter(DataLoader(Pictures(negatives=True), batch_size=BATCH, shuffle=True, num_workers=8))

    def run(steps: int) -> None:
        for _ in range(steps):
            training.step(*next(batches))

    return run


def bare_convolutions(steps: Steps) -> Callable[[int], None]:
    """Each convolution of the student by itself, on an input of the size and layout that it gets in a step."""
    network, seen = steps.training.network, []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: seen.append((module, given[0].detach())))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    steps.run(1)
    for hook in hooks:
        hook.remove()
    precision = steps.training.parts.precision
    first = seen[0][0]
    work = [(conv, x.clone().requires_grad_(conv is not first)) for conv, x in seen]

    def run(count: int) -> None:
        for _ in range(count):
            for conv, x in work:
                y = precision.run(conv, x)
                y.backward(torch.ones_like(y))
                conv.weight.grad = x.grad = None

    return run


def measure(pair: tuple[str, str], registry, args) -> dict:
    teacher, student = pair
    changes = [f"teacher.model={teacher}", f"student.model={student}", f"engine.precision={args.precision}"]
    config = config_of(ROOT / "configs/repdistiller/crd.yaml", registry, *changes)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(f"{folder}/crd", Path(folder) / "mirror")
        fill(config, parts_of(config, registry), place, 2 * args.steps + WARM + 1)
        cached = Steps(config, registry, Path(folder) / "runs", {"teacher": place})
        kinds = {
            "peers": peers(teacher, student),
            "kdray, live": Steps(config, registry, Path(folder) / "runs").run,
            "kdray, stored": cached.run,
        }
        found = {kind: parts_of_step(run, args.steps) for kind, run in kinds.items()}
        return found | {"bare convolutions": milliseconds(bare_convolutions(cached), args.steps)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    registry, found = registry_with_random_pictures(), {}
    for name, pair in PAIRS.items():
        found[name] = measure(pair, registry, args)
        bare = found[name].pop("bare convolutions")
        print(f"\n| {name}, ms | {' | '.join(found[name])} |\n| --- |{' ---: |' * len(found[name])}")
        for part in next(iter(found[name].values())):
            print(f"| {part} | {' | '.join(f'{times[part]:,.0f}' for times in found[name].values())} |")
        print(f"\nbare convolutions of the student: {bare:,.0f} ms", flush=True)
        found[name]["bare convolutions"] = bare
    file = Path(__file__).parent / "results" / f"anatomy-{args.precision}.json"
    file.write_text(json.dumps({**vars(args), **machine(), "ms": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
