"""What each method's step costs beside plain KD's: seconds a step of the main loop, teacher included.

    python benchmarks/methods.py [NAME…] [--precision bf16] [--rounds 3] [--steps 3]

One process; ResNet-32x4 teaches ResNet-8x4, the losses of the method's own config, batch 64 of 32×32 pictures out of
50,000 in memory (their content does not matter). Before and after each round of a method comes one of KD, so that a
slow moment of the machine hits both; the figure is the median of the rounds' ratios. Writes
benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from pathlib import Path

from steps import ROOT, Steps, config_of, machine, registry_with_random_pictures


def file_of(name: str) -> Path | None:
    found = [ROOT / "configs" / folder / f"{name}.yaml" for folder in ("methods", "repdistiller", ".")]
    return next((path for path in found if path.exists()), None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    registry = registry_with_random_pictures()
    names = args.names or sorted(name for name in registry.distillers if file_of(name))
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def steps(name):
            config = config_of(file_of(name), registry, f"engine.precision={args.precision}")
            return Steps(config, registry, Path(folder) / name)

        kd = steps("kd")
        kd.seconds(args.steps)  # warm up
        for name in names:
            method = steps(name)
            method.seconds(args.steps)
            pairs, before = [], kd.seconds(args.steps)
            for _ in range(args.rounds):
                mine, after = method.seconds(args.steps), kd.seconds(args.steps)
                pairs.append((mine, (before + after) / 2))
                before = after
            row = {
                "method": name,
                "seconds": statistics.median(mine for mine, _ in pairs),
                "ratio": statistics.median(mine / base for mine, base in pairs),
            }
            rows.append(row)
            print(f"{name:12} {row['seconds']:.3f} s a step, {row['ratio']:.2f} of KD's", flush=True)
            del method
            gc.collect()
    result = {
        "precision": args.precision,
        "rounds": args.rounds,
        "steps": args.steps,
        **machine(),
        "methods": rows,
    }
    if not args.names:
        (Path(__file__).parent / "results" / "methods.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
