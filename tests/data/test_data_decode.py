"""Encoded pictures become the pixels that Pillow sees; damaged ones are named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from kdray.data.decode import decode
from kdray.errors import ConfigError

y, x = np.mgrid[0:40, 0:56]
SMOOTH = np.stack([y * 6, x * 4, (x + y) * 2], axis=2).astype(np.uint8)


def encoded(mode="RGB", kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(SMOOTH).convert(mode).save(file, kind, **options)
    return file.getvalue()


KINDS = [("RGB", "PNG"), ("RGB", "JPEG"), ("L", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")]


@pytest.mark.parametrize("mode, kind", [*KINDS, ("1", "PNG"), ("RGB", "BMP"), ("RGB", "WEBP")])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_pillow(mode, kind, channels):
    data = encoded(mode, kind)
    found = decode(data, channels, "it")
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")).reshape(40, 56, channels)
    assert found.dtype == torch.uint8 and found.shape == (channels, 40, 56)
    difference = (found.permute(1, 2, 0).int() - torch.from_numpy(expected).int()).abs().max()
    assert difference <= (2 if kind == "JPEG" else 0)  # two builds of one JPEG library may round apart


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b"", lambda b: b"\xff\xd8" + b]
)
def test_damaged_pictures_are_named(kind, damage):
    with pytest.raises(ConfigError, match=r"picture 7 \(here\) cannot be decoded: .*Repair"):
        decode(damage(encoded(kind=kind)) if damage else b"", 3, "picture 7 (here)")


def test_sixteen_bits_a_channel_are_refused():
    """Pillow would turn nearly all of it white."""
    file = io.BytesIO()
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(file, "PNG")
    with pytest.raises(ConfigError, match="8 bits"):
        decode(file.getvalue(), 1, "it")
