"""A folder in which `kdray train` finds random pictures and teachers that have not learned anything; and the pace at
which it trains there, as its own progress.json tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from kdray.config.schema import ModelConfig
from kdray.engine.checkpoint import write_safetensors
from kdray.models.build import build_model
from kdray.registry import Registry
from kdray.run.asking import STOP, ask

ROOT = Path(__file__).parent.parent
N, CLASSES, BATCH = 50_000, 100, 64
PLUGIN = f"""
import torch
from kdray import DatasetSpec, Source, hookimpl

def load(options, path, split):
    n = {N} if split == "train" else {BATCH}
    images = torch.randint(256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Source(torch.arange(n) % {CLASSES}, [str(c) for c in range({CLASSES})], 3, images)

@hookimpl
def kdray_datasets():
    return [DatasetSpec("random", load, mean=(0.5,) * 3, std=(0.25,) * 3)]
"""


def network(name: str) -> nn.Module:
    """Untrained, with statistics of random pictures, so that its answers have an ordinary size."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(model=name), Registry.default(), CLASSES, 3).model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a mean over the batches that are seen
    with torch.no_grad():
        model(torch.randn(BATCH, 3, 32, 32))
    return model


class RunFailed(Exception):
    """The end of what `kdray train` said."""


@dataclass
class Pace:
    """What a run says of itself, and from it the seconds of a step, over each stretch of about 0.3 s between two words,
    by stage ("" the main loop). `warm` steps of each epoch do not count."""

    warm: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    counted: int = 0
    """Steps of the main loop."""
    last: tuple[str, int, int, float] = ("", 0, 0, 0.0)
    """Stage, epoch, step in it, time."""

    def hear(self, now: dict, at: float) -> None:
        if now["phase"] != "training":
            return
        before, self.last = self.last, (now.get("stage") or "", now["epoch"], now["batch"], at)
        stage, steps = self.last[0], self.last[2] - before[2]
        if before[:2] == self.last[:2] and before[2] >= self.warm and steps > 0:
            self.seconds.setdefault(stage, []).append((at - before[3]) / steps)
            self.counted += 0 if stage else steps


class Project:
    def __init__(self, folder: Path, teachers: tuple[str, ...], environment: dict[str, str]):
        self.folder, self.environment, self.number = folder, environment, 0
        (folder / "random_pictures.py").write_text(PLUGIN)
        (folder / "kdray.toml").write_text('[plugins]\nload = ["random_pictures.py"]\n')
        for name in teachers:
            write_safetensors(network(name).state_dict(), self.weights(name))

    def weights(self, teacher: str) -> Path:
        return self.folder / f"{teacher}.safetensors"

    def changes(self, teacher: str | None, student: str) -> list[str]:
        """Overrides that put a published config on random pictures and these networks."""
        found = ["data.name=random", f"student.model={student}"]
        if teacher:
            found += [f"teacher.model={teacher}", f"teacher.checkpoint={self.weights(teacher)}"]
            found += ["teacher.train=null", "teacher.cache=null"]
        return found

    def pace(self, config: str, changes: list[str], warm: int, steps: int) -> Pace:
        """Of a run in one Ray worker with both CPUs, until `steps` of the main loop are counted; it is then
        stopped as `kdray stop` does it. Raises RunFailed."""
        self.number += 1
        name, pace = f"run-{self.number}", Pace(warm)
        command = [sys.executable, "-m", "kdray", "train", str(ROOT / "configs" / config), *changes]
        command += ["--name", name, "--num-workers", "1", "--cpus-per-worker", "2"]
        folder = self.folder / "runs" / name
        with open(self.folder / "said.txt", "w+") as said:
            run = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=said, stderr=said)
            while run.poll() is None and pace.counted < steps:
                time.sleep(0.1)
                now = read(folder / "progress.json")
                if now:
                    pace.hear(*now)
            if run.poll() is None:
                ask(folder, STOP)
            run.wait()
            if pace.counted < steps:
                said.seek(0)
                raise RunFailed("\n".join(said.read().splitlines()[-12:]))
        return pace


def read(file: Path) -> tuple[dict, float] | None:
    """What is in it, and when it was written."""
    try:
        with open(file) as handle:
            return json.load(handle), os.fstat(handle.fileno()).st_mtime_ns / 1e9
    except (FileNotFoundError, NotADirectoryError):
        return None
