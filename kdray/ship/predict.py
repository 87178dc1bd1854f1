"""`kdray predict`: what a student, of a run or of an exported file, says of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as TF

from ..data.build import pipeline
from ..data.decode import decode
from ..errors import ConfigError
from ..registry import Registry
from .formats import Runs


def files_of(paths: list[Path]) -> list[Path]:
    """The pictures among `paths`, and those in their folders, in order. Raises ConfigError where there are none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
        elif path.exists():
            found.append(path)
        else:
            raise ConfigError(f"no picture {path}")
    if not found:
        raise ConfigError(f"no pictures in {', '.join(map(str, paths))}: looked for {', '.join(IMG_EXTENSIONS)}")
    return found


@torch.no_grad()
def predict(runs: Runs, facts: dict, files: list[Path], top: int, registry: Registry) -> Iterator[dict]:
    """For each picture its `file`, and `classes`, the likeliest first, with `probabilities`."""
    prepare = pipeline(facts["evaluate"], registry, seed=0)
    channels, height, width = facts["input"]["shape"][1:]
    names, top = facts["classes"], min(top, len(facts["classes"]))
    for file in files:
        picture = prepare(decode(file.read_bytes(), channels, str(file))[None], torch.zeros(1, dtype=torch.int64), 0)
        if picture.shape[-2:] != (height, width):
            picture = TF.resize(picture, [height, width], antialias=True)
        likely = F.softmax(runs(picture.contiguous())[0].double(), dim=0).topk(top)
        yield {
            "file": str(file),
            "classes": [names[i] for i in likely.indices],
            "probabilities": likely.values.tolist(),
        }
