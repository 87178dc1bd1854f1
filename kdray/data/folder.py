"""A folder of pictures in the layout of torchvision's ImageFolder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from ..options import Options
from .source import Encoded


class FolderOptions(Options):
    train: str = Field("train", description="Folder of the training pictures, with a folder for each class.")
    test: str | None = Field(None, description="Folder of the test pictures. Default: test, else val.")
    channels: Literal[3, 1] = Field(3, description="Decode as RGB (3) or in grey (1).")


class Folder(Encoded):
    def __init__(self, root: Path, channels: int):
        from torchvision.datasets import ImageFolder

        found = ImageFolder(str(root))
        super().__init__(torch.tensor(found.targets), found.classes, channels)
        self.root, self.files = root, [Path(file) for file, _ in found.samples]

    def raw(self, position: int) -> bytes:
        return self.files[position].read_bytes()

    def where(self, position: int) -> str:
        return str(self.files[position])

    def listing(self):
        return (f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}" for file in self.files)


def load(options: FolderOptions, path: Path, split: str) -> Folder:
    """Raises FileNotFoundError for a missing folder, or one without pictures in folders."""
    if split == "train":
        names = [options.train]
    else:
        names = [options.test] if options.test else ["test", "val"]
    for name in names:
        if (path / name).is_dir():
            return Folder(path / name, options.channels)
    raise FileNotFoundError(f"there is no folder {' or '.join(str(path / name) for name in names)}")
