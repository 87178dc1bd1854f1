"""A folder of pictures, a sub-folder a class, as torchvision's ImageFolder has it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from ..errors import ConfigError
from ..options import Options
from .decode import decode
from .source import Source


class FolderOptions(Options):
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey.")


class Folder(Source):
    def __init__(self, root: Path, channels: int):
        from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

        try:
            classes, to_index = find_classes(str(root))
            self.files = make_dataset(str(root), to_index, extensions=IMG_EXTENSIONS)
        except OSError as error:
            raise ConfigError(f"{root}: {error}") from error
        super().__init__(torch.tensor([label for _, label in self.files]), classes, channels)

    def read(self, position: int):
        file = Path(self.files[position][0])
        what = f"picture {position} ({file})"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{what} cannot be read: {error.strerror}") from error
        return decode(data, self.channels, what)


def load(options: FolderOptions, path: Path, split: str) -> Folder:
    """path/train/<class>/<picture>, and path/test or path/val."""
    names = ("train",) if split == "train" else ("test", "val")
    root = next((path / name for name in names if (path / name).is_dir()), None)
    if root is None:
        raise ConfigError(
            f"no folder {' or '.join(str(path / name) for name in names)}: "
            "data.path must hold train/<class>/<picture> and test/<class>/<picture>"
        )
    return Folder(root, options.channels)
