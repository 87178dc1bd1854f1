"""`kdray predict`: what a student, of a run or of an exported file, says of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
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
    """For each picture its `file`, and `classes`, the likeliest first, with `probabilities`. Raises ConfigError for a
    file that cannot be read, or is no picture."""
    prepare = preparation(facts, registry)
    for file in files:
        yield {"file": str(file), **likeliest(runs(prepare(_read(file), str(file))[None])[0], facts, top)}


def preparation(facts: dict, registry: Registry) -> Callable[[bytes, str], Tensor]:
    """From an encoded picture, and what it is called in a ConfigError, to what the student sees: uint8 (C, H, W)."""
    pipe = pipeline(facts["evaluate"], registry, seed=0)
    channels, height, width = facts["input"]["shape"][1:]

    def prepare(data: bytes, what: str) -> Tensor:
        picture = pipe(decode(data, channels, what)[None], torch.zeros(1, dtype=torch.int64), 0)
        if picture.shape[-2:] != (height, width):
            picture = TF.resize(picture, [height, width], antialias=True)
        return picture[0].contiguous()

    return prepare


def likeliest(logits: Tensor, facts: dict, top: int) -> dict:
    """logits (classes,) of a picture. `classes`, the likeliest first, with `probabilities`."""
    names = facts["classes"]
    likely = F.softmax(logits.double(), dim=0).topk(min(top, len(names)))
    return {"classes": [names[i] for i in likely.indices], "probabilities": likely.values.tolist()}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror or error}. Make it readable, or leave it out"
        ) from error
