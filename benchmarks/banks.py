"""What the negatives of `crd` cost where the training set is as large as ImageNet's: the loss alone, without networks.

    python benchmarks/banks.py [--samples 1281167] [--steps 5]

For each source of negatives and batch size, in a process of its own: seconds of a step (forward, backward and the
writing of the memory; median) and the memory that it takes, when it is made (banks, lists of classes; at most) and
beyond that at most during a step. 1,000 classes, embeddings of 512 and 2,048 numbers, d = 128, K = 16,384 where a
number is drawn or queued.
Writes benchmarks/results/banks.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from steps import machine

from kdray import Batch, Outputs, Setup, Shapes, Step
from kdray.config.sections import parse_options
from kdray.engine.allocator import keep_freed_memory
from kdray.registry import Registry

CLASSES, WIDTHS, BATCHES = 1000, (512, 2048), (64, 256)
KINDS = {
    "a bank of all samples, negatives drawn for each": {"kind": "bank"},
    "the same in bf16": {"kind": "bank", "dtype": "bf16"},
    "the same bank, negatives shared by the batch": {"kind": "shared"},
    "the same in bf16 ": {"kind": "shared", "dtype": "bf16"},
    "a queue": {"kind": "queue"},
    "the batch": {"kind": "batch"},
}
"""`negatives:` of crd. One that this kdray does not know is left out."""


def peak() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(negatives: dict, samples: int, batch: int, steps: int) -> dict:
    """Raises ValidationError where `crd` does not know such negatives."""
    keep_freed_memory()
    spec = Registry.default().get("distillers", "crd")
    options = parse_options(spec.cls.Options, {"negatives": negatives})
    before, labels = peak(), torch.arange(samples) % CLASSES
    student, teacher = (Shapes(embedding=(width,)) for width in WIDTHS)
    generator = torch.Generator().manual_seed(0)
    crd = spec.cls(options, Setup(student, teacher, CLASSES, samples, labels, generator, batch_size=batch))
    at_rest, seconds = peak(), []
    for number in range(steps + 1):
        given = [Outputs(embedding=torch.randn(batch, width)) for width in WIDTHS]
        given[0].embedding.requires_grad_()
        index = torch.randint(samples, (batch,))
        at = Batch(index=index, target=labels[index], size=batch)
        step = Step(number=number, epoch=0, generator=torch.Generator().manual_seed(number))
        began = time.perf_counter()
        crd(*given, at, step).backward()
        crd.after_backward(at, step)
        crd.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {
        "negatives": negatives,
        "batch": batch,
        "seconds": statistics.median(seconds[1:]),
        "at_rest": at_rest - before,
        "in_step": peak() - at_rest,
    }


def apart(work) -> dict:
    """In a new process, whose peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    rows = []
    print("| negatives | batch | a step, ms | memory at rest, MB | more in a step, MB |\n| --- |" + " ---: |" * 4)
    for said, negatives in KINDS.items():
        for batch in BATCHES:
            try:
                row = apart(partial(measure, negatives, args.samples, batch, args.steps))
            except ValidationError:
                print(f"| {said} | {batch} | not there | | |")
                continue
            rows.append(row)
            numbers = (row["seconds"] * 1e3, row["at_rest"] / 1e6, row["in_step"] / 1e6)
            print(f"| {said} | {batch} | {' | '.join(f'{x:,.0f}' for x in numbers)} |", flush=True)
    result = {**vars(args), **machine(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
    (Path(__file__).parent / "results" / "banks.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
