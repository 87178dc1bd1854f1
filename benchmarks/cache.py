"""What a teacher cache brings: pictures a second, live against cached, beside the student trained with ce alone; and
the rate of computing a cache beside that of the teacher's bare forward pass.

    python benchmarks/cache.py [--precision bf16] [--rounds 7] [--steps 4]

One process; ResNet-32x4 teaches ResNet-8x4 and WRN-40-2 teaches WRN-16-2, kd and crd (bank, 16,384 negatives), batch 64
of 32×32 pictures out of 50,000 in memory (their content does not matter). The kinds take turns in every round; figures
are medians over rounds, ratios are medians of the rounds' own ratios. Writes benchmarks/results/cache-PRECISION.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from answers import fill, store_of
from steps import ROOT, Steps, config_of, machine, parts_of, registry_with_random_pictures

from kdray.teacher.compute import BATCH, compute
from kdray.teacher.setup import Place

PAIRS = {"ResNet-32x4 -> ResNet-8x4": ("resnet32x4", "resnet8x4"), "WRN-40-2 -> WRN-16-2": ("wrn_40_2", "wrn_16_2")}
METHODS = {"kd": "configs/repdistiller/kd.yaml", "crd": "configs/repdistiller/crd.yaml"}
SPARE = 4
"""Steps that warm up."""


def precompute_rate(config, registry, place, rounds: int) -> dict:
    """Pictures a second of computing and storing, and of the bare forward pass over pictures at hand."""
    parts = parts_of(config, registry)
    store, live = store_of(config, parts, place)
    pictures = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    ids, size = parts.data.train.ids, 4 * BATCH
    live(pictures)
    stored, bare = [], []
    for i in range(rounds):
        keys = store.pictures.met(ids[i * size : (i + 1) * size], [0])
        began = time.perf_counter()
        compute(keys, store, live, 4)
        stored.append(size / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(4):
            live(pictures)
        bare.append(size / (time.perf_counter() - began))
    ratio = statistics.median(a / b for a, b in zip(stored, bare))
    return {"computed": statistics.median(stored), "bare": statistics.median(bare), "ratio": ratio}


def measure(pair: tuple[str, str], registry, args) -> dict:
    teacher, student = pair
    changes = [f"teacher.model={teacher}", f"student.model={student}", f"engine.precision={args.precision}"]
    with tempfile.TemporaryDirectory() as folder:
        kinds = {}
        for method, file in METHODS.items():
            config = config_of(ROOT / file, registry, *changes)
            place = Place(f"{folder}/{method}", Path(folder) / "mirror")
            fill(config, parts_of(config, registry), place, args.rounds * args.steps + SPARE)
            kinds[f"{method} live"] = Steps(config, registry, Path(folder) / "runs")
            kinds[f"{method} cached"] = Steps(config, registry, Path(folder) / "runs", {"teacher": place})
        alone = config_of(ROOT / METHODS["kd"], registry, *changes[1:], "teacher=null", "losses.kd=null")
        kinds["ce alone"] = Steps(alone, registry, Path(folder) / "runs")
        seconds = {kind: [] for kind in kinds}
        for kind in kinds.values():
            kind.seconds(SPARE)
        for _ in range(args.rounds):
            for name, kind in kinds.items():
                seconds[name].append(kind.seconds(args.steps))
        rate = precompute_rate(config, registry, Place(f"{folder}/rate", Path(folder) / "mirror"), args.rounds)
    base = seconds["ce alone"]
    return {
        "steps": {
            name: {
                "pictures_per_second": 64 / statistics.median(times),
                "of_ce_alone": statistics.median(b / t for b, t in zip(base, times)),
            }
            for name, times in seconds.items()
        },
        "precompute": rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    registry = registry_with_random_pictures()
    found = {}
    for name, pair in PAIRS.items():
        found[name] = row = measure(pair, registry, args)
        print(name)
        for kind, step in row["steps"].items():
            print(f"  {kind:12} {step['pictures_per_second']:8,.0f}/s  {step['of_ce_alone']:.2f} of ce alone")
        rate = row["precompute"]
        print(f"  precompute   {rate['computed']:8,.0f}/s  {rate['ratio']:.2f} of the bare forward pass", flush=True)
    result = {**vars(args), **machine(), "pairs": found}
    file = Path(__file__).parent / "results" / f"cache-{args.precision}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
