"""Data sets that others publish: read, and downloaded where that is possible, by torchvision and scikit-learn."""

from __future__ import annotations

from pathlib import Path

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
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", "70,000 articles of clothing, 28×28 grey, 10 classes", (0.2860,), (0.3530,)),
}


def torchvision(name: str, path: Path, split: str) -> Source:
    """Raises ConfigError, with the place where the files are expected, when they are absent and cannot be downloaded."""
    import torchvision.datasets as datasets

    cls, where = getattr(datasets, TORCHVISION[name][0]), TORCHVISION[name][1]
    try:
        found = cls(str(path), train=split == "train", download=False)
    except RuntimeError:  # absent or incomplete
        try:
            found = cls(str(path), train=split == "train", download=True)
        except Exception as error:  # every kind of network, archive and file error
            raise ConfigError(
                f"{name} is not at {path / where}, and it could not be downloaded ({type(error).__name__}: {error}). "
                f"Put torchvision's files there, or say where they are with data.path"
            ) from error
    images = torch.as_tensor(found.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return Source(torch.as_tensor(found.targets).long(), list(found.classes), images.shape[1], images.contiguous())


def digits(options: Options, path: Path, split: str) -> Source:
    """1,797 scans; every class gives a fifth to the test set, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = torch.from_numpy(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(found.target).long()
    parts = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=found.target)
    chosen = torch.tensor(sorted(parts[split == "test"]))
    return Source(labels[chosen], [str(name) for name in found.target_names], 1, images[chosen])
