"""Data sets that others publish: read, and downloaded where that is possible, by torchvision and scikit-learn."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy
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
}


def torchvision(name: str, path: Path, split: str) -> Source:
    """Raises ConfigError with the place where the files are expected, when they are absent and cannot be downloaded."""
    import torchvision.datasets as datasets

    cls, where = getattr(datasets, TORCHVISION[name][0]), TORCHVISION[name][1]
    train = split == "train"
    try:
        found = cls(str(path), train=train)
    except Exception as problem:  # absent, incomplete, or damaged: torchvision raises many kinds
        try:
            with _one_process(path), _download(path):
                found = cls(str(path), train=train, download=True)
        except Exception as error:
            raise ConfigError(
                f"{name} is not at {path / where}, or it is damaged ({_short(problem)}), and it cannot be downloaded "
                f"({_short(error)}). Put torchvision's files there, after removing damaged ones, or say where they are "
                "with data.path"
            ) from error
    images = torch.as_tensor(found.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return Source(torch.as_tensor(found.targets).long(), list(found.classes), images.shape[1], images.contiguous())


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


# Which of the digits are for the test, a bit each: scikit-learn's train_test_split(range(1797), test_size=0.2,
# random_state=0, stratify=…). To import that, and its pandas, would take a third of the time to a run's first step.
DIGITS_TEST = int(
    "a8251c80484240414030058109010615108420243402654411004100c14080701601032203209414cc0084050821008070080000981003"
    "c0101c008100411080007160200403013200100108106386a1d021000a5018250542020001220068408156ec2162022001008382024040"
    "12180520100210d0000000501965043c8015c100212440009023704000080c001202a00008051002080023a0120004018100001b200200"
    "0000500502429224a822041150100005088140051f0420489809005029000800483460140024008010005800a042c900826000020824ac"
    "11200000",
    16,
)


def digits(options: Options, path: Path, split: str) -> Source:
    """1,797 scans; every class gives a fifth to the test set, always the same."""
    file = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(numpy.loadtxt(file, delimiter=",", dtype=numpy.uint8))
    images = (rows[:, :64] * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
    chosen = torch.tensor([i for i in range(len(rows)) if (DIGITS_TEST >> i & 1) == (split == "test")])
    return Source(rows[chosen, 64].long(), [str(name) for name in range(10)], 1, images[chosen])
