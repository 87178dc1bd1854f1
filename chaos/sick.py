"""A plugin that does harm when it is told to: copied into each project of the chaos test.

order.json beside it says what, for the next run: {"do": …, "step": n, "rank": r}. It is done once, and the order taken
away: what is done again after a restart goes well.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch

from kdray import Distiller, DistillerSpec, Requires, hookimpl

FOLDER = Path(os.environ.get("KDRAY_CHAOS_FOLDER", "."))


class Sick(Distiller):
    """0 for every student, until an order comes."""

    requires = Requires(student={"logits"})

    def forward(self, student, teacher, batch, step):
        zero = student.logits.mean() * 0
        order = self._order(step)
        match order.get("do"):
            case "raise":
                raise ValueError("the sky fell")
            case "shape":
                return student.logits[:, 0] * 0
            case "nan":
                return zero * float("nan")
            case "hang":
                time.sleep(10_000)
            case "pause":
                time.sleep(3)
            case "kill":
                os.kill(os.getpid(), order["signal"])
                if order["signal"] == signal.SIGKILL:
                    time.sleep(60)  # the signal needs a moment
            case "vanish":
                os.rename(FOLDER / order["folder"], FOLDER / "gone")  # who gave the order brings it back
            case "fill":
                fill(FOLDER / order["folder"], order["free"])
            case "clock":
                shift(order["seconds"])
            case "seeds":
                torch.manual_seed(order["seed"])
                random.seed(order["seed"])
                np.random.seed(order["seed"] % 2**32)
        return zero

    def _order(self, step) -> dict:
        try:
            order = json.loads((FOLDER / "order.json").read_text())
        except (OSError, ValueError):
            return {}
        if (step.number, step.rank) != (order["step"], order["rank"]):
            return {}
        os.rename(FOLDER / "order.json", FOLDER / "done.json")
        return order


def fill(folder: Path, free: int) -> None:
    """So many bytes are left on the file system."""
    (folder / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(folder).free - free)))


def shift(seconds: float) -> None:
    """time.time jumps."""
    true = time.time
    time.time = lambda: true() + seconds


@hookimpl
def kdray_distillers():
    return [DistillerSpec("sick", Sick)]
