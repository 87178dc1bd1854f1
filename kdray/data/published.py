"""Well-known sets of small pictures, read and downloaded by scikit-learn and torchvision. They are held in memory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .source import Source


class InMemory(Source):
    """images: uint8 (N, C, H, W); labels: int64 (N,)."""

    def __init__(self, images: Tensor, labels: Tensor, class_names: list[str]):
        self.images, self.labels, self.class_names = images, labels, class_names
        self.num_classes, self.channels = len(class_names), images.shape[1]


def load_digits(options, path: Path, split: str) -> InMemory:
    """The 1,797 scanned digits that come with scikit-learn, 8×8 in 17 greys; a fixed quarter of each class is the test set."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    found = datasets.load_digits()
    parts = train_test_split(range(len(found.target)), test_size=0.25, stratify=found.target, random_state=0)
    chosen = sorted(parts[split == "test"])
    images = torch.from_numpy(found.images[chosen]).mul(255 / 16).round().to(torch.uint8)
    return InMemory(images[:, None], torch.from_numpy(found.target[chosen]).long(), [str(n) for n in found.target_names])


def load_torchvision(name: str, options, path: Path, split: str) -> InMemory:
    """A data set of torchvision by the name of its class. Raises FileNotFoundError where it is not and cannot be got."""
    from torchvision import datasets

    found = _open(getattr(datasets, name), path, split == "train")
    images = torch.as_tensor(found.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return InMemory(images.contiguous(), torch.as_tensor(found.targets).long(), list(found.classes))


def _open(cls, path: Path, train: bool):
    with _one_process(path):
        try:
            return cls(str(path), train=train)
        except Exception as problem:  # missing, cut short, or not what the checksum says: torchvision raises many kinds
            missing = next((folder for folder in (*reversed(path.parents), path) if not folder.exists()), None)
            try:
                with _timeout(30):
                    return cls(str(path), train=train, download=True)
            except Exception as error:
                if missing:  # leave nothing half-written behind
                    shutil.rmtree(missing, ignore_errors=True)
                raise FileNotFoundError(f"{problem} The download failed: {error}") from error


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Workers of one node that find the data missing download it once, not all into the same file."""
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir(), f"kdray-{os.getuid()}-{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads know no time-out of their own, and hang where packets are swallowed."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
