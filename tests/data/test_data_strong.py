"""The strong augmentations against torchvision's own functions and plain loops."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from kdray.data.augment import Pipeline
from kdray.data.color import ORDERS, brightness, contrast, hue, saturation
from kdray.data.views import uniform
from kdray.errors import ConfigError

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randint(256, (24, 3, 12, 16), generator=GENERATOR, dtype=torch.uint8)
IDS = torch.arange(100, 124)


@pytest.fixture
def build(registry):
    def build(name, **options):
        cls = registry.get("augmentations", name).cls
        return cls(cls.Options(**options))

    return build


EVERY = [
    ("rotate", {"degrees": 90}),
    ("cutout", {"size": 5}),
    ("rand_augment", {"n": 3, "magnitude": 14}),
    ("color_jitter", {"p": 0.9}),
    ("grayscale", {"p": 0.5}),
]


@pytest.mark.parametrize("name, options", EVERY)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_the_same_alone_and_in_any_batch(build, name, options, channels):
    step, pictures, before = build(name, **options), PICTURES[:, :channels], PICTURES.clone()
    u = uniform(1, 0, IDS, 0, step.draws)
    whole = step(pictures, u)
    assert whole.dtype == torch.uint8 and whole.shape[:2] == pictures.shape[:2]
    assert torch.equal(whole, step(pictures, u))
    assert torch.equal(torch.cat([step(pictures[i : i + 1], u[i : i + 1]) for i in range(len(u))]), whole)
    order = torch.randperm(len(u), generator=GENERATOR)
    assert torch.equal(step(pictures[order], u[order]), whole[order])
    assert torch.equal(PICTURES, before)


@pytest.mark.parametrize("name, options", [("color_jitter", {"hue": 0.0}), ("rand_augment", {"magnitude": 30})])
def test_large_pictures_too(build, name, options):
    step = build(name, **options)
    pictures = torch.randint(256, (3, 3, 260, 270), generator=GENERATOR, dtype=torch.uint8)
    u = uniform(2, 0, torch.arange(3), 0, step.draws)
    assert torch.equal(torch.cat([step(pictures[i : i + 1], u[i : i + 1]) for i in range(3)]), step(pictures, u))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotate_is_exact(build, turns):
    found = build("rotate", degrees=90 * turns)(PICTURES, torch.zeros(24, 0))
    height, width = PICTURES.shape[-2:]
    for _ in range(turns):  # once counter-clockwise: the right column becomes the top row
        found = torch.stack([found[:, :, i, :] for i in range(found.shape[2] - 1, -1, -1)], dim=3)  # and back
    assert found.shape[-2:] == (height, width) and torch.equal(found, PICTURES)


@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_cutout_is_the_plain_loop(build, size):
    step = build("cutout", size=size, value=9)
    u = uniform(3, 0, IDS, 0, step.draws)
    expected = PICTURES.clone()
    for i in range(len(IDS)):
        y, x = int(u[i, 0] * 12), int(u[i, 1] * 16)
        for row in range(12):
            for column in range(16):
                if 0 <= row - y + size // 2 < size and 0 <= column - x + size // 2 < size:
                    expected[i, :, row, column] = 9
    assert torch.equal(step(PICTURES, u), expected)


def test_every_pixel_is_the_middle_of_a_hole_equally_often(build):
    step, n = build("cutout", size=1, value=0), 4000
    u = uniform(0, 0, torch.arange(n), 0, step.draws)
    holes = (step(torch.full((n, 1, 4, 5), 255, dtype=torch.uint8), u) == 0).sum(dim=(0, 1))
    assert holes.sum() == n and ((holes - n / 20) ** 2 / (n / 20)).sum() < 52  # chi-square, 19 degrees: p < 1e-4


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (brightness, TF.adjust_brightness),
        (contrast, TF.adjust_contrast),
        (saturation, TF.adjust_saturation),
        (hue, TF.adjust_hue),
    ],
)
def test_colours_are_those_of_torchvision(ours, theirs):
    factors = torch.rand(24, generator=GENERATOR, dtype=torch.float64) * (0.5 if ours is hue else 2)
    for picture, factor, found in zip(PICTURES, factors.tolist(), ours(PICTURES, factors)):
        assert (found.int() - theirs(picture, factor).int()).abs().max() <= 1  # float32 against Python's factor


def test_color_jitter_is_the_plain_loop(build):
    step = build("color_jitter", brightness=0.5, contrast=1.5, saturation=0.3, hue=0.2, p=0.7)
    u = uniform(4, 0, IDS, 0, step.draws)
    steps, sides = [brightness, contrast, saturation, hue], [(0.5, 1.5), (0, 2.5), (0.7, 1.3), (-0.2, 0.2)]
    changed = 0
    for i, found in enumerate(step(PICTURES, u)):
        expected = PICTURES[i : i + 1]
        if u[i, 5] < 0.7:
            changed += 1
            for k in ORDERS[int(u[i, 4] * 24)].tolist():
                low, high = sides[k]
                expected = steps[k](expected, low + (high - low) * u[i : i + 1, k])
        assert torch.equal(found, expected[0])
    assert 0 < changed < len(IDS)


def test_color_jitter_of_nothing_changes_nothing(build):
    for options in ({"p": 0.0}, {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "p": 1.0}):
        step = build("color_jitter", **options)
        assert torch.equal(step(PICTURES, uniform(1, 0, IDS, 0, step.draws)), PICTURES)


def test_grayscale_has_the_asked_share_and_no_colour(build):
    step, n = build("grayscale", p=0.3), 2000
    found = step(PICTURES[:1].expand(n, -1, -1, -1), uniform(0, 0, torch.arange(n), 0, 1))
    is_grey = (found == found[:, :1]).flatten(1).all(1)
    assert abs(is_grey.double().mean() - 0.3) < 0.04
    assert torch.equal(found[is_grey][0], TF.rgb_to_grayscale(PICTURES[0], 3))
    assert torch.equal(found[~is_grey][0], PICTURES[0])


# Its operations in the order of ours: the first nine to both sides.
NAMES = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"]
NAMES += ["Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"]


@pytest.mark.parametrize("magnitude", [0, 9, 15, 30])
def test_operations_of_rand_augment_are_those_of_torchvision(build, magnitude, monkeypatch):
    ours, theirs = build("rand_augment", n=1, magnitude=magnitude), v2.RandAugment(1, magnitude)
    pictures = torch.nn.functional.interpolate(PICTURES[:, :, :6, :6].float(), size=(33, 40)).to(torch.uint8)
    for place, name in enumerate(NAMES):
        for side, negative in ((0.75, False), (0.25, True)):
            space = theirs._AUGMENTATION_SPACE[name]
            monkeypatch.setattr(theirs, "_get_random_item", lambda _, name=name, space=space: (name, space))
            monkeypatch.setattr(torch, "rand", lambda *_, side=side, **__: torch.tensor(side))
            u = torch.tensor([[(place + 0.5) / len(NAMES), side]], dtype=torch.float64).expand(len(pictures), 2)
            found, expected = ours(pictures, u), theirs(pictures)
            difference = (found.int() - expected.int()).abs()
            assert difference.max() <= 1 or name in NAMES[:5], (name, negative)
            # A pixel on the edge of two may go to either where the last bit of the strength differs.
            assert (difference > 1).double().mean() < 0.01, (name, negative)
        monkeypatch.undo()


def test_rand_augment_draws_every_operation_and_both_sides(build, monkeypatch):
    counts = torch.zeros(14, 2)
    for kind, steps in (("SIGNED", range(9)), ("UNSIGNED", range(9, 14))):

        def counter(place):
            def count(images, m):
                counts[place, int(m < 0)] += len(images)
                return images

            return count

        monkeypatch.setattr(f"kdray.data.strong.{kind}", [counter(place) for place in steps])
    step, n = build("rand_augment", n=2, magnitude=10), 7000
    step(PICTURES[:1, :, :1, :1].expand(n, -1, -1, -1), uniform(0, 0, torch.arange(n), 0, step.draws))
    assert counts.sum() == 2 * n
    assert ((counts.sum(1) - n / 7) ** 2 / (n / 7)).sum() < 40  # chi-square, 13 degrees: p = 1e-4
    assert (counts[:9] - n / 14).abs().max() < 4.5 * (n / 14) ** 0.5 and counts[9:, 1].sum() == 0


def test_rand_augment_refuses_other_channels(build):
    step = build("rand_augment")
    with pytest.raises(ConfigError, match="1 or 3 channels, not 2"):
        step(PICTURES[:, :2], torch.zeros(24, step.draws))


def test_in_a_pipeline(build):
    steps = [(name, build(name, **options)) for name, options in EVERY]
    found = Pipeline(steps, 3)(PICTURES, IDS, 0)
    assert found.shape == (24, 3, 16, 12)
    assert not torch.equal(found, Pipeline(steps, 3)(PICTURES, IDS, 1))
