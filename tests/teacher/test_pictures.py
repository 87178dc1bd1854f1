"""Numbered pictures: what a cache that is kept by picture stands on."""

import math

import numpy as np
import pytest
import torch

from kdray.data.source import Source
from kdray.data.views import uniform
from kdray.teacher.pictures import Pictures, describe, missing, unique
from tests.teacher.cache_lab import make_pipeline

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randint(256, (300, 3, 10, 10), generator=GENERATOR, dtype=torch.uint8)
IDS = torch.randperm(5000, generator=GENERATOR)[:300]
BASE = ["crop", "flip"]
TURN = {"rotate": {"degrees": 90}}

LIMITED = {
    "nothing": ([], 1),
    "crop 1": ([{"crop": {"padding": 1}}], 9),
    "crop 4": (["crop"], 81),
    "crop 7": ([{"crop": {"padding": 7}}], 225),
    "never flipped": ([{"flip": {"p": 0.0}}], 2),
    "flip": (["flip"], 2),
    "always flipped": ([{"flip": {"p": 1.0}}], 2),
    "rotate": ([TURN], 1),
    "centre": ([{"resize": {"size": 8}}, {"center_crop": {"size": 6}}], 1),
    "crop, flip": (BASE, 162),
    "flip, rotate, crop": (["flip", TURN, {"crop": {"padding": 2}}], 50),
    "two crops": ([{"crop": {"padding": 1}}, "flip", {"crop": {"padding": 2}}], 450),
}
UNLIMITED = [
    [{"random_resized_crop": {"size": 8}}],
    ["flip", {"cutout": {"size": 4}}],
    [{"rand_augment": {"n": 1}}],
    [{"color_jitter": {"brightness": 0.4}}],
    [{"crop": {"padding": 12}}, "flip"],  # 1,250 pictures
]


@pytest.mark.parametrize("view", [0, 7])
@pytest.mark.parametrize("name", LIMITED)
def test_a_numbered_picture_is_that_of_its_view(name, view):
    entries, count = LIMITED[name]
    pipeline = make_pipeline(*entries)
    variant = pipeline.variant(IDS, view)
    assert pipeline.variants == count
    assert variant.dtype == torch.int64 and (variant >= 0).all() and (variant < count).all()
    assert torch.equal(pipeline.make(PICTURES, variant), pipeline(PICTURES, IDS, view))


@pytest.mark.parametrize("on_top, count", [([TURN], 162), (["flip"], 324), ([], 162)])
def test_a_numbered_picture_of_a_view_of_the_base_picture(on_top, count):
    pipeline = make_pipeline(*on_top, seed=2, after=make_pipeline(*BASE))
    assert pipeline.variants == count
    for view in (0, 3):
        made = pipeline.make(PICTURES, pipeline.variant(IDS, view))
        assert torch.equal(made, pipeline(PICTURES, IDS, view))
        base = pipeline.after(PICTURES, IDS, view)
        turned = make_pipeline(*on_top, seed=2)(base, IDS, view)
        assert torch.equal(made, turned)


@pytest.mark.parametrize("entry", ["crop", {"crop": {"padding": 1}}, {"crop": {"padding": 15}}, "flip", TURN])
def test_numbers_is_the_inverse_of_variant(entry):
    ((_, step),) = make_pipeline(entry).steps
    every = torch.arange(step.variants)
    assert step.numbers(every).shape == (len(every), step.draws)
    assert torch.equal(step.variant(step.numbers(every)), every)


def test_variants_are_as_likely_as_the_picture_that_they_name():
    """Every number of a variant gives its very picture: the numbers are only one choice of many."""
    ((_, crop),) = make_pipeline({"crop": {"padding": 2}}).steps
    u = uniform(0, 0, torch.arange(len(PICTURES)), 0, 2)
    assert torch.equal(crop(PICTURES, u), crop(PICTURES, crop.numbers(crop.variant(u))))
    edges = torch.tensor([[0.0, 1 - 2**-53], [0.2, 0.2 - 2**-54], [0.6, 0.4]], dtype=torch.float64)
    assert torch.equal(crop(PICTURES[:3], edges), crop(PICTURES[:3], crop.numbers(crop.variant(edges))))


@pytest.mark.parametrize("entries", UNLIMITED)
def test_too_many_pictures_have_no_numbers(entries):
    assert make_pipeline(*entries).variants is None
    assert make_pipeline("flip", seed=2, after=make_pipeline(*entries)).variants is None


def test_240_epochs_meet_125_of_162_pictures():
    """Of each sample. Draws are independent: a picture is missed by 240 of them with probability (161/162)^240."""
    pipeline, epochs, samples = make_pipeline(*BASE), 240, 2000
    met = torch.zeros(samples, 162, dtype=torch.bool)
    ids = torch.arange(samples)
    for view in range(epochs):
        met[ids, pipeline.variant(ids, view)] = True
    found = met.sum(1).double()
    q, both = (161 / 162) ** epochs, (160 / 162) ** epochs  # one is missed, two are
    mean = 162 * (1 - q)
    deviation = math.sqrt(162 * q * (1 - q) + 162 * 161 * (both - q * q))
    assert round(mean) == 125
    assert abs(found.mean() - mean) < 5 * deviation / math.sqrt(samples)
    # The standard error of a sample's deviation is about 1 / sqrt(2 n) of it.
    assert abs(found.std() - deviation) < 5 * deviation / math.sqrt(2 * samples)


def source(count: int = 300) -> Source:
    return Source(torch.zeros(count, dtype=torch.int64), ["a"], 3, PICTURES[:count])


def test_epochs_that_show_the_same_picture_share_a_key():
    pictures = Pictures(make_pipeline({"crop": {"padding": 1}}), source())
    ids = torch.arange(0, 300, 3)
    met = pictures.met(ids, range(20))
    expected = {int(pictures.pipeline.variant(i[None], view)) * 300 + int(i) for i in ids for view in range(20)}
    assert met.tolist() == sorted(expected) and len(met) < 20 * len(ids)
    assert set(met) < set(pictures.all(ids)) and len(pictures.all(ids)) == 9 * len(ids)
    assert sorted(pictures.all(ids)) == pictures.all(ids).tolist()


def test_without_numbers_each_view_has_its_keys():
    pictures = Pictures(make_pipeline({"random_resized_crop": {"size": 8}}), source())
    assert pictures.keys(torch.tensor([5, 0]), 3).tolist() == [905, 900]
    assert pictures.met(torch.tensor([5, 0]), [0, 2]).tolist() == [0, 5, 600, 605]


class Streamed(Source):
    """Pictures that are read one by one."""

    def read(self, position):
        return PICTURES[position]


@pytest.mark.parametrize("entries", [BASE, [{"random_resized_crop": {"size": 8}}]])
@pytest.mark.parametrize("held", [True, False])
def test_the_pictures_of_keys_are_those_of_the_views(entries, held):
    pipeline = make_pipeline(*entries)
    given = source() if held else Streamed(torch.zeros(300, dtype=torch.int64), ["a"], 3)
    pictures, ids = Pictures(pipeline, given), torch.arange(300)[::7]
    of_key = {}
    for view in (0, 4):
        shown = pipeline(PICTURES[ids], ids, view)
        of_key |= dict(zip(pictures.keys(ids, view).tolist(), shown))
    keys = pictures.met(ids, [0, 4])
    made = list(pictures.batches(keys, 16, threads=2, device=torch.device("cpu")))
    assert all(len(batch) <= 16 for batch in made)
    assert torch.equal(torch.cat(made), torch.stack([of_key[key] for key in keys.tolist()]))


def test_a_seed_belongs_to_views_and_not_to_numbered_pictures():
    assert describe(make_pipeline(*BASE, seed=1)) == describe(make_pipeline(*BASE, seed=2))
    one, two = (describe(make_pipeline({"random_resized_crop": {"size": 8}}, seed=seed)) for seed in (1, 2))
    assert one != two and one["augmentation"] == two["augmentation"]
    on_top = [make_pipeline("flip", seed=5, after=make_pipeline(*UNLIMITED[0], seed=seed)) for seed in (1, 2)]
    assert describe(on_top[0]) != describe(on_top[1])


def test_sorted_keys():
    keys = np.array([7, 1, 7, 3, 1])
    assert unique(keys).tolist() == [1, 3, 7] and unique(keys[:0]).tolist() == []
    assert missing(np.array([1, 2, 7, 9]), np.array([1, 3, 7])).tolist() == [2, 9]
    assert missing(np.array([1, 2]), keys[:0]).tolist() == [1, 2]
    assert missing(keys[:0], np.array([1])).tolist() == []
