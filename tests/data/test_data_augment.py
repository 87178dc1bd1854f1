"""Augmentations against loops that say what they mean."""

import pytest
import torch
import torch.nn.functional as F

from kdray.data.augment import Augmentation, Pipeline
from kdray.data.views import uniform
from kdray.errors import PluginError
from kdray.options import Options

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randint(256, (40, 3, 12, 16), generator=GENERATOR, dtype=torch.uint8)
IDS = torch.arange(100, 140)


@pytest.fixture
def pipeline(registry):
    def build(*entries, seed=1):
        steps = []
        for name, options in entries:
            cls = registry.get("augmentations", name).cls
            steps.append((name, cls(cls.Options(**options))))
        return Pipeline(steps, seed)

    return build


def test_crop_and_flip_are_the_plain_loop(pipeline):
    found = pipeline(("crop", {"padding": 3}), ("flip", {"p": 0.4}))(PICTURES, IDS, 5)
    places, sides = uniform(1, 5, IDS, 0, 2), uniform(1, 5, IDS, 1, 1)
    flipped = 0
    for i, picture in enumerate(PICTURES):
        top, left = int(places[i, 0] * 7), int(places[i, 1] * 7)
        expected = F.pad(picture, (3, 3, 3, 3))[:, top : top + 12, left : left + 16]
        if sides[i, 0] < 0.4:
            expected, flipped = expected.flip(2), flipped + 1
        assert torch.equal(found[i], expected)
    assert 0 < flipped < len(PICTURES)


def test_every_one_of_162_pictures_is_reached(pipeline):
    picture = torch.randint(256, (1, 3, 9, 9), generator=GENERATOR, dtype=torch.uint8)
    n = 6000
    found = pipeline(("crop", {"padding": 4}), ("flip", {}))(picture.expand(n, -1, -1, -1), torch.arange(n), 0)
    kinds, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 9 * 9 * 2
    assert ((counts - n / 162) ** 2 / (n / 162)).sum() < 235  # chi-square, 161 degrees of freedom: p = 1e-4


@pytest.mark.parametrize("p, share", [(0.0, 0), (1.0, 1), (0.25, 0.25)])
def test_flip_has_the_asked_share(pipeline, p, share):
    pictures = PICTURES[:1].expand(4000, -1, -1, -1)
    found = pipeline(("flip", {"p": p}))(pictures, torch.arange(4000), 0)
    flipped = (found == pictures.flip(3)).flatten(1).all(1).double().mean()
    assert abs(flipped - share) <= (0 if p in (0, 1) else 0.03)


ALL = [
    [("crop", {}), ("flip", {})],
    [("resize", {"size": 9}), ("center_crop", {"size": 8})],
    [("random_resized_crop", {"size": 8}), ("flip", {})],
]


@pytest.mark.parametrize("entries", ALL)
def test_a_picture_is_the_same_alone_in_a_batch_and_in_any_order(pipeline, entries):
    augment = pipeline(*entries)
    whole = augment(PICTURES, IDS, 2)
    alone = torch.cat([augment(PICTURES[i : i + 1], IDS[i : i + 1], 2) for i in range(len(IDS))])
    assert torch.equal(alone, whole)
    order = torch.randperm(len(IDS), generator=GENERATOR)
    assert torch.equal(augment(PICTURES[order], IDS[order], 2), whole[order])


@pytest.mark.parametrize("entries", [ALL[0], ALL[2]])
def test_views_seeds_and_samples_differ(pipeline, entries):
    same = PICTURES[:1].expand(40, -1, -1, -1)
    found = pipeline(*entries)(same, IDS, 0)
    assert not torch.equal(found, pipeline(*entries)(same, IDS, 1))
    assert not torch.equal(found, pipeline(*entries, seed=2)(same, IDS, 0))
    assert len(found.flatten(1).unique(dim=0)) > 20


def test_sizes(pipeline):
    assert pipeline(("resize", {"size": 6}))(PICTURES, IDS, 0).shape == (40, 3, 6, 8)
    middle = pipeline(("center_crop", {"size": 8}))(PICTURES, IDS, 0)
    assert torch.equal(middle, PICTURES[:, :, 2:10, 4:12])
    part = pipeline(("random_resized_crop", {"size": 7}))(PICTURES, IDS, 0)
    assert part.shape == (40, 3, 7, 7) and part.dtype == torch.uint8
    flat = torch.full((40, 3, 12, 16), 77, dtype=torch.uint8)
    assert (pipeline(("random_resized_crop", {"size": 7}))(flat, IDS, 0) == 77).all()  # never from outside


@pytest.mark.parametrize("height, width", [(90, 120), (300, 100)])
def test_windows_of_random_resized_crop(pipeline, monkeypatch, height, width):
    boxes = []

    def record(image, top, left, h, w, size, antialias):
        boxes.append((top, left, h, w))
        return image[:, : size[0], : size[1]]

    monkeypatch.setattr("kdray.data.augment.TF.resized_crop", record)
    n = 4000
    pictures = torch.zeros(1, 1, height, width, dtype=torch.uint8).expand(n, -1, -1, -1)
    pipeline(("random_resized_crop", {"size": 8, "min_area": 0.1, "max_ratio": 1.5}))(pictures, torch.arange(n), 0)
    top, left, h, w = torch.tensor(boxes).double().unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    share, ratio = h * w / (height * width), w / h
    whole = (h < height) & (w < width)
    assert share.min() > 0.09 and (ratio[whole] > 0.63).all() and (ratio[whole] < 1.58).all()
    assert ratio[share < 0.2].log().mean().abs() < 0.05  # as often wide as high, where both fit
    if height == 90:  # every share has a ratio that fits: none is cut off
        assert abs(share.mean() - 0.55) < 0.02 and abs(share.std() - 0.9 / 12**0.5) < 0.02
        assert share.max() > 0.99
    free = height - h > 10
    places = top[free] / (height - h[free])
    assert abs(places.mean() - 0.5) < 0.03 and places.min() < 0.02 and places.max() > 0.98


def test_an_augmentation_that_returns_something_else_is_refused(pipeline):
    class Wrong(Augmentation):
        def __call__(self, images, u):
            return images.float()

    with pytest.raises(PluginError, match=r"'wrong' made torch\.float32"):
        Pipeline([("wrong", Wrong(Options()))], 0)(PICTURES, IDS, 0)


def test_pictures_given_are_left_alone(pipeline):
    before = PICTURES.clone()
    for entries in ALL:
        pipeline(*entries)(PICTURES, IDS, 1)
    assert torch.equal(PICTURES, before)


def test_describe_tells_everything_that_changes_pictures(pipeline):
    described = pipeline(("crop", {"padding": 2}), ("flip", {})).describe()
    assert described == [("crop", 1, {"padding": 2}), ("flip", 1, {"p": 0.5})]
