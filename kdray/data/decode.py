"""Encoded pictures to tensors."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import ConfigError


def decode(data: bytes, channels: int, what: str) -> Tensor:
    """uint8 (channels, H, W). `what` names the picture in the ConfigError for one that is damaged."""
    if channels == 3 and data.startswith(b"\xff\xd8"):
        from torchvision.io import ImageReadMode, decode_jpeg  # here: see functional.py

        # Pillow's pixels in a third of its time, while other threads run. What it refuses, Pillow judges.
        try:
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        except RuntimeError:
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut off everything above 255
                raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
            array = np.array(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, … for damaged pictures
        raise ConfigError(
            f"{what} cannot be decoded: {_reason(error)}. Repair the picture, or take it out of the data set."
        ) from error
    return torch.from_numpy(array).view(*array.shape[:2], channels).permute(2, 0, 1).contiguous()


def _reason(error: Exception) -> str:
    return "it is in no picture format" if isinstance(error, UnidentifiedImageError) else str(error)
