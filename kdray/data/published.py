"""Data sets that others publish: those of torchvision, which downloads what may be, and digits, which are here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from ..errors import ConfigError
from ..options import Options
from .source import Source

# name: (torchvision's class, where it keeps its files under data.path, summary, channel means and deviations)
TORCHVISION = {
    "cifar10": (
        "CIFAR10",
        "cifar-10-batches-py",
        "60,000 pictures, 32×32, 10 classes",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": (
        "CIFAR100",
        "cifar-100-python",
        "60,000 pictures, 32×32, 100 classes",
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
    ),
    "fashion_mnist": (
        "FashionMNIST",
        "FashionMNIST/raw",
        "70,000 articles of clothing, 28×28 grey, 10 classes",
        (0.2860,),
        (0.3530,),
    ),
    "stl10": (
        "STL10",
        "stl10_binary",
        "13,000 pictures with a label, 96×96, 10 classes",
        (0.4467, 0.4398, 0.4066),
        (0.2603, 0.2566, 0.2713),
    ),
}


def torchvision(name: str, path: Path, split: str) -> Source:
    """Raises ConfigError with the place where the files are expected, when they are absent and cannot be downloaded."""
    import torchvision.datasets as datasets

    cls, where = getattr(datasets, TORCHVISION[name][0]), TORCHVISION[name][1]
    part = {"split": split} if name == "stl10" else {"train": split == "train"}
    try:
        found = cls(str(path), **part)
    except Exception as problem:  # absent, incomplete, or damaged: torchvision raises many kinds
        try:
            with _one_process(path), _download(path):
                found = cls(str(path), **part, download=True)
        except Exception as error:
            raise ConfigError(
                f"{name} is not at {path / where}, or it is damaged ({_short(problem)}), and it cannot be downloaded "
                f"({_short(error)}). Put torchvision's files there, after removing damaged ones, or say where they are "
                "with data.path"
            ) from error
    images = torch.as_tensor(found.data)
    if images.dim() == 3:
        images = images[:, None]
    elif name != "stl10":  # which has its channels first already
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(found.labels if name == "stl10" else found.targets).long()
    return Source(labels, list(found.classes), images.shape[1], images.contiguous())


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Workers of one node that find the data absent download it once, not all into the same file."""
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir(), f"kdray-{os.getuid()}-{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _download(path: Path) -> Iterator[None]:
    """Gives up on a silent network, and leaves nothing behind when it fails."""
    present = {path, *path.parents, *path.rglob("*")}
    present = {entry for entry in present if entry.exists()}
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision sets none, and would hang where packets are swallowed
    try:
        yield
    except BaseException:
        for entry in sorted({path, *path.parents, *path.rglob("*")} - present, reverse=True):  # what lies deepest first
            with suppress(OSError):
                entry.rmdir() if entry.is_dir() else entry.unlink()
        raise
    finally:
        socket.setdefaulttimeout(patience)


def _short(error: Exception) -> str:
    """What torchvision says, on one line and without its advice to programmers."""
    text = " ".join(str(error).partition(" You can use download=True")[0].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def digits(options: Options, path: Path, split: str) -> Source:
    """1,797 scans (Alpaydin and Kaynak, 1998: UCI, Optical Recognition of Handwritten Digits, CC BY 4.0), as
    scikit-learn has them; every class gives a fifth to the test set, always the same.

    They lie beside this file: scikit-learn takes longer to import than a small network takes to train on them.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as found:
        chosen = found["test"] == (split == "test")
        images, labels = (torch.from_numpy(found[name][chosen]) for name in ("images", "labels"))
    scans = (images.double() * (255 / 16)).round().to(torch.uint8)[:, None]
    return Source(labels.long(), [str(digit) for digit in range(10)], 1, scans)
