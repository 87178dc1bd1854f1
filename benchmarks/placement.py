"""A teacher in actors of its own (`teacher.placement`) beside the live one, through `kdray train` itself.

    python benchmarks/placement.py [--precision bf16] [--rounds 3]

ResNet-32x4 teaches ResNet-8x4, ce + kd, batch 64 of random 32×32 pictures; pictures a second over the second epoch of
40 steps. `together`: one worker with both networks and two CPUs. `placed`: a worker with the student on one CPU, an
actor with the teacher on another. `student` and `teacher`: what one CPU does alone: the slower of them bounds `placed`.
The kinds take turns; figures are medians. Writes benchmarks/results/placement-PRECISION.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from steps import machine

from kdray.config.schema import ModelConfig
from kdray.engine.checkpoint import write_safetensors
from kdray.engine.precision import Precision
from kdray.models.build import build_model
from kdray.registry import Registry

STEPS, BATCH = 40, 64
PLUGIN = f"""
import torch
from kdray import DatasetSpec, Source, hookimpl

def load(options, path, split):
    n = {STEPS * BATCH} if split == "train" else 64
    images = torch.randint(256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Source(torch.arange(n) % 100, [str(c) for c in range(100)], 3, images)

@hookimpl
def kdray_datasets():
    return [DatasetSpec("random", load, mean=(0.5,) * 3, std=(0.25,) * 3)]
"""
CONFIG = """
name: placement
data: {name: random, batch_size: 64, augment: [crop, flip]}
teacher: {model: resnet32x4, checkpoint: teacher.safetensors}
student: {model: resnet8x4}
losses: {ce: {}, kd: {temperature: 4.0}}
optimizer: {name: sgd, lr: 0.05}
schedule: {epochs: 2}
"""
KINDS = {
    "together": ["scale.cpus_per_worker=2"],
    "placed": ["scale.cpus_per_worker=1", "teacher.placement={workers: 1, cpus: 1}"],
    "student": ["scale.cpus_per_worker=1", "teacher=null", "losses.kd=null"],
}


def rate(project: Path, name: str, changes: list[str]) -> float:
    """Pictures a second of the second epoch."""
    command = [sys.executable, "-m", "kdray", "train", "config.yaml", "--name", name, "--num-workers", "1", *changes]
    subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (project / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [row["pictures_per_second"] for row in rows if row["kind"] == "epoch"][1]


def network() -> torch.nn.Module:
    return build_model(ModelConfig(model="resnet32x4"), Registry.default(), num_classes=100, in_channels=3).model


@torch.inference_mode()
def teacher_rate(precision: str) -> float:
    """Pictures a second of the teacher's bare forward pass on one CPU."""
    torch.set_num_threads(1)
    teacher = network().eval().to(memory_format=torch.channels_last)
    pictures = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    for step in range(12):
        if step == 2:
            began = time.perf_counter()
        Precision(precision, pictures.device).run(teacher, pictures)
    return 10 * BATCH / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "teacher")}
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "random_pictures.py").write_text(PLUGIN)
        (project / "kdray.toml").write_text('[plugins]\nload = ["random_pictures.py"]\n')
        (project / "config.yaml").write_text(CONFIG)
        write_safetensors(network().state_dict(), project / "teacher.safetensors")
        for number in range(args.rounds):
            for kind, changes in KINDS.items():
                found[kind].append(rate(project, f"{kind}-{number}", [*changes, f"engine.precision={args.precision}"]))
            found["teacher"].append(teacher_rate(args.precision))
    medians = {kind: statistics.median(rates) for kind, rates in found.items()}
    bound = min(medians["student"], medians["teacher"])
    ratios = {
        "placed_of_together": medians["placed"] / medians["together"],
        "placed_of_bound": medians["placed"] / bound,
    }
    for kind, value in medians.items():
        print(f"{kind:10} {value:8,.0f} pictures/s")
    print(f"placed ÷ together {ratios['placed_of_together']:.2f}, placed ÷ slower part {ratios['placed_of_bound']:.2f}")
    result = {**vars(args), **machine(), "date": time.strftime("%Y-%m-%d"), "pictures_per_second": medians, **ratios}
    file = Path(__file__).parent / "results" / f"placement-{args.precision}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
