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
    try:
        with Image.open(io.BytesIO(data)) as image:
            array = np.array(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, … for damaged pictures
        raise ConfigError(f"{what} cannot be decoded: {_reason(error)}. Repair the picture, or take it out of the data set.") from error
    return torch.from_numpy(array).view(*array.shape[:2], channels).permute(2, 0, 1).contiguous()


def _reason(error: Exception) -> str:
    return "it is in no picture format" if isinstance(error, UnidentifiedImageError) else str(error)
