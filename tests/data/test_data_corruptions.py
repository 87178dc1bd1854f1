"""Corruptions against the same by other libraries and in plain loops."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import norm, poisson

from kdray.data import corruptions
from kdray.data.corruptions import CORRUPTIONS, corrupt
from kdray.data.views import stream, uniform

IDS = torch.tensor([5, 2, 9])


def pictures(channels=3, height=20, width=14, seed=0):
    shape = (len(IDS), channels, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def constants(name, size="small"):
    return CORRUPTIONS[name][size == "large"]


def as_bytes(x):
    return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)


def each(x, change):
    """`change` of every picture, float64 (H, W, C) in 0..1."""
    return np.stack([as_bytes(change(one / 255)).transpose(2, 0, 1) for one in x.permute(0, 2, 3, 1).numpy()])


def by_pillow(picture: Image.Image, name, constant):
    if name == "pixelate":
        small = [int(side * constant) for side in picture.size]
        return picture.resize(small, Image.BOX).resize(picture.size, Image.BOX)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=constant)
    return Image.open(file)


def brighter(x, more):
    made = np.empty_like(x)
    for place in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*x[place])
        made[place] = colorsys.hsv_to_rgb(h, s, min(v + more, 1))
    return made


CHANGES = {
    "gaussian_blur": lambda x, c: gaussian_filter(x, (c, c, 0), mode="nearest", truncate=4),
    "brightness": brighter,
    "contrast": lambda x, c: (x - x.mean((0, 1), keepdims=True)) * c + x.mean((0, 1), keepdims=True),
}


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", CHANGES)
def test_what_needs_no_chance(name, severity):
    x = pictures()
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 255  # black has no hue
    expected = each(x, lambda one: CHANGES[name](one, constants(name)[severity - 1]))
    made = corrupt(x, IDS, name, severity, seed=0).numpy().astype(int)
    assert np.abs(made - expected).max() <= 1  # fp32 may round a half to the other side
    assert (made != expected).mean() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["jpeg_compression", "pixelate"])
def test_what_pillow_does(name, channels):
    x = pictures(channels, 32, 32)
    for severity in (1, 5):
        made = corrupt(x, IDS, name, severity, seed=0)
        for one, changed in zip(x, made):
            array = one.permute(1, 2, 0).numpy() if channels == 3 else one[0].numpy()
            expected = np.asarray(by_pillow(Image.fromarray(array), name, constants(name)[severity - 1]))
            assert np.array_equal(changed.permute(1, 2, 0).squeeze(-1).numpy(), expected)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise"])
def test_noise_is_the_quantile_of_its_numbers(name, size):
    """And has the constants of ImageNet-C from 65 pixels on."""
    x = pictures(1, *((65, 66) if size == "large" else (64, 90)))
    for severity in (1, 5):
        c = constants(name, size)[severity - 1]
        u = uniform(stream(3, "corruption", name), severity, IDS, 0, x[0].numel()).view(x.shape).numpy()
        clean = x.numpy() / 255
        if name == "gaussian_noise":
            expected = as_bytes(clean + norm.ppf(u, scale=c))
        else:
            expected = as_bytes(np.where(clean > 0, poisson.ppf(u, clean * c), 0) / c)
        assert np.array_equal(corrupt(x, IDS, name, severity, seed=3).numpy(), expected)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_sample_looks_alike_in_any_batch(name, monkeypatch):
    x = pictures()
    kept = x.clone()
    together = corrupt(x, IDS, name, 4, seed=1)
    assert together.dtype == torch.uint8 and together.shape == x.shape and torch.equal(x, kept)
    assert not torch.equal(together, x)
    for i in range(len(x)):
        assert torch.equal(corrupt(x[[i]], IDS[[i]], name, 4, seed=1)[0], together[i])
    monkeypatch.setattr(corruptions, "TOGETHER", x[0].numel())
    assert torch.equal(corrupt(x, IDS, name, 4, seed=1), together)
    by_chance = name.endswith("noise")
    assert torch.equal(corrupt(x, IDS, name, 4, seed=2), together) is not by_chance
    assert torch.equal(corrupt(x, IDS + 1, name, 4, seed=1), together) is not by_chance


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_rise(name):
    x = pictures(height=32, width=32) // 2 + 60  # nothing is cut off at white
    changes = [(corrupt(x, IDS, name, s, seed=0).double() - x).abs().mean() for s in range(1, 6)]
    assert changes == sorted(changes) and len(set(changes)) == 5


def test_channels_that_no_picture_has():
    assert corrupt(pictures(2), IDS, "pixelate", 5, seed=0).shape == (3, 2, 20, 14)
