"""What a GPU makes of it: that recorded steps are the steps, for every method; pictures a second of kdray's step, as it
is and recorded, beside the peers' step; and a whole run by kdray's commands.

    python benchmarks/gpu.py methods [NAME…]     # each method's own config, 6 steps recorded against 6 that are not
    python benchmarks/gpu.py speed [--rounds 3]  # both pairs, kd and crd, batch 64 and 1,024; writes results/gpu.json
    python benchmarks/gpu.py run FOLDER [--epochs 240]  # crd on the WRN pair, cache and evaluations included

One process, one GPU. 50,000 random pictures of 32×32; `run`: those of a folder of Parquet files, after a teacher of 12
epochs, which does not count. Its parts are told as they end.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from answers import fill
from steps import ROOT, Steps, config_of, machine, parts_of, registry_with_random_pictures

from kdray.engine import train
from kdray.engine.beside import Beside
from kdray.engine.context import Context
from kdray.teacher.setup import Place

DEVICE = torch.device("cuda")
PAIRS = {"ResNet-32x4 -> ResNet-8x4": ("resnet32x4", "resnet8x4"), "WRN-40-2 -> WRN-16-2": ("wrn_40_2", "wrn_16_2")}
FOLDERS = ("methods", "repdistiller", ".")
HOW = (
    "plain",
    "recorded",
    "recorded, compiled",
    "recorded, compiled, in turn",
    "recorded, compiled, shared negatives",
)
"""in turn: what the student has no part in does not run beside it."""
ROWS = [
    (batch, kind, how)
    for batch in (64, 1024)
    for kind in ("cached", "live")
    for how in HOW
    if batch == 64 or "compiled" in how
]
COMPARED = 6
"""Steps: half of them are replays."""


def file_of(name: str) -> Path | None:
    found = [ROOT / "configs" / folder / f"{name}.yaml" for folder in FOLDERS]
    return next((path for path in found if path.exists()), None)


def clean() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def methods(names: list[str], registry) -> None:
    for name in names or sorted(name for name in registry.distillers if file_of(name)):
        try:
            print(f"{name:10} {compare(name, registry)}", flush=True)
        except Exception as error:
            where = [frame for frame in traceback.extract_tb(error.__traceback__) if "torch" not in frame.filename]
            at = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in where[:-4:-1])
            print(f"{name:10} {type(error).__name__}: {str(error)[:400]} [{at}]", flush=True)
        clean()


def compare(name: str, registry) -> str:
    """How far apart a recorded and a plain run end, beside the size of their steps."""
    cls = registry.get("distillers", name).cls
    says, cls.recordable = cls.recordable, True
    ends, begin = {}, None
    try:
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("true", "false", "again"):
                changes = (f"engine.record={'true' if kind == 'true' else 'false'}", "engine.precision=bf16")
                config = config_of(file_of(name), registry, *changes)
                for loss in config.losses.values():
                    loss.schedule.clear()
                steps = Steps(config, registry, Path(folder) / kind, context=Context(device=DEVICE))
                if kind == "true" and not steps.training.recorder:
                    return "not recorded"
                network = steps.training.parts.student.model
                begin = begin or [p.detach().clone() for p in network.parameters()]
                steps.seconds(COMPARED)
                ends[kind] = [x.detach().clone() for x in [*network.parameters(), *steps.training.objective.buffers()]]
    finally:
        cls.recordable = says

    def apart(a, b):
        pairs = [(x.double(), y.double()) for x, y in zip(a, b)]
        return (sum((x - y).square().sum() for x, y in pairs) ** 0.5).item()

    moved = apart(begin, ends["false"][: len(begin)])
    recorded, noise = apart(ends["true"], ends["false"]), apart(ends["again"], ends["false"])
    verdict = "ok" if recorded <= max(3 * noise, 1e-3 * moved) else "DIFFERS"
    return f"{verdict}  moved {moved:.3g}, recorded {recorded:.2g} away, a second plain run {noise:.2g}"


def rate(steps: Steps, count: int, rounds: int) -> float:
    size = steps.config.data.batch_size
    return size / statistics.median(steps.seconds(count) for _ in range(rounds))


def speed(rounds: int, registry) -> list[dict]:
    from peers import Distillation, Pictures
    from torch.utils.data import DataLoader

    rows = []

    def tell(**row) -> None:
        rows.append(row)
        print(" ".join(f"{value:>10,.0f}/s" if key == "rate" else str(value) for key, value in row.items()), flush=True)

    for pair, (teacher, student) in PAIRS.items():
        for method in ("kd", "crd"):
            for batch, kind, how in ROWS:
                count = 200 if batch == 64 else 15
                if method == "kd" and ("shared" in how or "in turn" in how):
                    continue
                train.Beside = (lambda device=None: Beside()) if "in turn" in how else Beside
                with tempfile.TemporaryDirectory() as folder:
                    changes = [f"teacher.model={teacher}", f"student.model={student}"]
                    changes += ["engine.precision=bf16", f"data.batch_size={batch}"]
                    changes += [f"engine.record={'plain' not in how}", f"engine.compile={'compiled' in how}"]
                    if "shared" in how:
                        changes += ["losses.crd.negatives.mode=null", "losses.crd.negatives.kind=shared"]
                    file = ROOT / "configs/repdistiller" / f"{method}.yaml"
                    config, caches = config_of(file, registry, *changes), None
                    if kind == "cached":
                        place = Place(f"{folder}/cache", Path(folder) / "mirror")
                        fill(config, parts_of(config, registry, None, DEVICE), place, 6 + count * rounds)
                        caches = {"teacher": place}
                    steps = Steps(config, registry, Path(folder), caches, Context(device=DEVICE))
                    steps.seconds(5)
                    tell(pair=pair, method=method, batch=batch, teacher=kind, step=how, rate=rate(steps, count, rounds))
                    del steps
                clean()
            training = Distillation(method, teacher, student, None, False)
            for module in (training.student, training.teacher, training.loss):
                if isinstance(module, torch.nn.Module):
                    module.cuda()
            loader = DataLoader(Pictures(negatives=method == "crd"), 64, shuffle=True, num_workers=12)
            batches, times = iter(loader), []
            for _ in range(70):
                began = time.perf_counter()
                training.step(*(x.cuda() for x in next(batches)))
                times.append(time.perf_counter() - began)
            tell(
                pair=pair,
                method=method,
                batch=64,
                teacher="live",
                step="peers",
                rate=64 / statistics.median(times[10:]),
            )
            del training, batches, loader
            clean()
    return rows


def run(data: Path, epochs: int) -> None:
    """Seconds of each command, and what it said last."""
    recipe = [f"data.path={data.resolve()}", "data.name=parquet", "engine.precision=bf16", "--num-workers", "0"]
    short = ["schedule.epochs=12", "schedule.name=cosine", "schedule.milestones=null", "schedule.gamma=null"]
    with tempfile.TemporaryDirectory() as folder:
        teacher = f"{folder}/runs/teacher/student.safetensors"
        crd = [str(ROOT / "configs/crd.yaml"), *recipe, "engine.compile=true", f"schedule.epochs={epochs}"]
        crd += ["teacher.train=null", f"teacher.checkpoint={teacher}"]
        for command in (
            ["train", str(ROOT / "configs/teachers/wrn_40_2.yaml"), *recipe, *short, "--name", "teacher"],
            ["precompute", *crd],
            ["train", *crd, "--name", "student", "--profile"],
        ):
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "kdray", *command], cwd=folder, capture_output=True, text=True)
            print(f"kdray {command[0]}: {time.perf_counter() - began:.1f} s, exit {done.returncode}")
            print((done.stdout + done.stderr)[-4000:], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["methods", "speed", "run"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    args = parser.parse_args()
    if args.what == "run":
        return run(Path(args.names[0]), args.epochs)
    registry = registry_with_random_pictures()
    if args.what == "methods":
        methods(args.names, registry)
    else:
        rows = speed(args.rounds, registry)
        result = {**machine(), "gpu": torch.cuda.get_device_name(), "rows": rows}
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
