"""Mixed pictures against plain loops and the distributions of the papers; the same alone, in any batch, streamed."""

import math

import numpy as np
import pytest
import torch
from data_files import write_folder
from scipy import stats

from kdray.config.schema import MixOptions
from kdray.data.augment import Pipeline
from kdray.data.build import Split
from kdray.data.feed import Feed
from kdray.data.mix import MIXES, CutMix, Mixup
from kdray.data.source import Source
from kdray.data.views import stream, uniform
from kdray.errors import ConfigError

WAYS = [{"mixup": {"alpha": 0.4}}, {"cutmix": {}}, {"mixup": {"p": 0.6}}, {"cutmix": {"alpha": 0.3, "p": 0.6}}]
AUGMENT = ["crop", "flip"]
CPU = torch.device("cpu")


def pictures(data, positions, view=2, pipeline=None, threads=2):
    feed = Feed(data.train, pipeline or data.augment, threads, CPU)
    return torch.cat(list(feed.batches(positions, view)))


def mixer(name, n, **options):
    """Of n samples without pictures, for what is drawn."""
    source = Source(torch.arange(n) % 7, [str(i) for i in range(7)], 3)
    return MIXES[name](MixOptions(**options), Pipeline([], 5), Split(source, torch.arange(n)), 5)


@pytest.mark.parametrize("mix", WAYS, ids=str)
def test_against_plain_loops(load, parquet, mix):
    """Sample by sample and pixel by pixel, from the uniform numbers of each sample."""
    ((name, given),) = mix.items()
    alpha, p = given.get("alpha", 1.0), given.get("p", 1.0)
    data, plain = load(name="parquet", augment=AUGMENT, mix=mix, samples=17), load(name="parquet", augment=AUGMENT)
    found, view = pictures(data, [torch.arange(17)]), 2
    partners, shares = data.mix.labels(data.train.ids, view, (10, 10))
    looks = pictures(plain, [torch.arange(24)])  # of all samples, unmixed, in the same view
    mixed = 0
    for row, i in enumerate(data.train.ids.tolist()):
        whether, which, level, above, beside = uniform(stream(0, "mix"), view, torch.tensor([i]), 0, 5)[0].tolist()
        if whether >= p:
            assert torch.equal(found[row], looks[i]) and shares[row] == 1
            assert partners[row] == plain.train.labels[i]
            continue
        mixed += 1
        j = data.train.ids[math.floor(which * 17)].item()
        own = stats.beta.ppf(level, alpha, alpha)
        inside = set()
        if name == "cutmix":
            half = math.floor(10 * math.sqrt(1 - own) / 2)
            for y in range(math.floor(10 * above) - half, math.floor(10 * above) + half):
                for x in range(math.floor(10 * beside) - half, math.floor(10 * beside) + half):
                    if 0 <= y < 10 and 0 <= x < 10:
                        inside.add((y, x))
            own = 1 - len(inside) / 100
        assert shares[row].item() == pytest.approx(own, abs=1e-6)
        assert partners[row] == plain.train.labels[j]
        for c in range(3):
            for y in range(10):
                for x in range(10):
                    a, b = looks[i, c, y, x].item(), looks[j, c, y, x].item()
                    value = found[row, c, y, x].item()
                    if name == "cutmix":
                        assert value == (b if (y, x) in inside else a)
                    else:
                        assert abs(value - (own * a + (1 - own) * b)) <= 0.5 + 1e-4
    assert mixed == 17 if p == 1 else 5 < mixed < 15


@pytest.mark.parametrize("mix", WAYS, ids=str)
def test_streamed_alone_and_in_any_batch_the_same_bytes(load, parquet, mix):
    memory, streamed = (
        load(name="parquet", augment=[*AUGMENT, {"random_resized_crop": {"size": 6}}], mix=mix, in_memory=kept)
        for kept in (True, False)
    )
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    whole = pictures(memory, [torch.arange(24)])
    assert whole.dtype == torch.uint8 and whole.shape == (24, 3, 6, 6)
    for data in (memory, streamed):
        for size in (1, 5):
            assert torch.equal(pictures(data, order.split(size)), whole[order])
    labels = memory.mix.labels(torch.arange(24), 2, (6, 6))
    alone = [memory.mix.labels(torch.tensor([i]), 2, (6, 6)) for i in order.tolist()]
    assert all(torch.equal(torch.cat(x), y[order]) for x, y in zip(zip(*alone), labels))
    assert not torch.equal(pictures(memory, [torch.arange(24)], view=3), whole)
    again = load(seed=1, name="parquet", augment=[*AUGMENT, {"random_resized_crop": {"size": 6}}], mix=mix)
    assert not torch.equal(pictures(again, [torch.arange(24)]), whole)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_beta(alpha):
    ids = torch.arange(20_000)
    share = mixer("mixup", 20_000, alpha=alpha).draw(ids, 0, (8, 8)).share
    assert share.dtype == torch.float32 and share.min() >= 0 and share.max() <= 1
    at = np.linspace(0.01, 0.99, 99)  # closer to the ends, float32 is rounded to them
    below = np.searchsorted(share.sort().values.numpy(), at) / len(share)
    assert abs(below - stats.beta.cdf(at, alpha, alpha)).max() < 1.95 / 20_000**0.5  # Kolmogorov, p = 1e-3
    assert abs(below - stats.beta.cdf(at, 1.2 * alpha, 1.2 * alpha)).max() > 1.95 / 20_000**0.5


def test_extreme_shares_are_numbers():
    for alpha in (1e-4, 1e4):
        share = mixer("mixup", 5000, alpha=alpha).draw(torch.arange(5000), 0, (8, 8)).share
        assert share.isfinite().all() and share.min() >= 0 and share.max() <= 1
        assert abs(share.mean() - 0.5) < 0.03
    assert ((share - 0.5).abs() < 0.03).all()


def test_partners_and_whether_to_mix_are_uniform_and_unrelated():
    ids = torch.arange(20_000)
    drawn = mixer("mixup", 20_000, p=0.3).draw(ids, 4, (8, 8))
    mixed = drawn.share < 1
    assert torch.equal(drawn.partner[~mixed], ids[~mixed])
    assert abs(mixed.double().mean() - 0.3) < 0.013  # 4 deviations
    partner, own, share = drawn.partner[mixed].double(), ids[mixed].double(), drawn.share[mixed].double()
    assert stats.kstest((partner / 20_000).numpy(), "uniform").pvalue > 1e-3
    table = torch.corrcoef(torch.stack([partner, own, share]))
    assert (table - torch.eye(3)).abs().max() < 0.06
    counts = sum(
        mixer("mixup", 10).draw(torch.arange(10), v, (8, 8)).partner.bincount(minlength=10) for v in range(500)
    )
    assert ((counts - 500) ** 2 / 500).sum() < 34  # chi-square, 9 degrees of freedom: p = 1e-4


@pytest.mark.parametrize("height, width", [(32, 32), (9, 24)])
def test_boxes_are_those_of_the_published_code(height, width):
    """rand_bbox of the authors' repository, with numpy's numbers: the same distribution of places and shares."""
    ids, rng = torch.arange(20_000), np.random.default_rng(0)
    drawn = mixer("cutmix", 20_000).draw(ids, 0, (height, width))
    lam, cy, cx = rng.beta(1, 1, 20_000), rng.integers(height, size=20_000), rng.integers(width, size=20_000)
    cut_h, cut_w = ((n * np.sqrt(1 - lam)).astype(int) for n in (height, width))
    top, bottom = np.clip(cy - cut_h // 2, 0, height), np.clip(cy + cut_h // 2, 0, height)
    left, right = np.clip(cx - cut_w // 2, 0, width), np.clip(cx + cut_w // 2, 0, width)
    share = 1 - (bottom - top) * (right - left) / (height * width)
    for ours, theirs in zip((*drawn.box.unbind(1), drawn.share), (top, left, bottom, right, share.astype(np.float32))):
        assert stats.ks_2samp(ours.numpy(), theirs).pvalue > 1e-3
    top, left, bottom, right = drawn.box.unbind(1)
    torch.testing.assert_close(drawn.share, 1 - (bottom - top) * (right - left) / (height * width))
    assert drawn.share.min() < 0.2 and drawn.share.max() == 1


def test_the_numbers_stay_what_they_were():
    """Runs are resumed, and teachers' outputs kept, by versions of kdray to come."""
    drawn = mixer("cutmix", 100, alpha=0.5).draw(torch.tensor([0, 5, 99]), 7, (32, 32))
    assert drawn.partner.tolist() == [95, 56, 33]
    assert drawn.box.tolist() == [[0, 11, 15, 32], [0, 3, 22, 31], [20, 12, 24, 16]]


def test_views_of_the_base_picture_show_the_mixed_one(load, parquet):
    turned = {"turned": {"of": "base", "augment": [{"rotate": {"degrees": 180}}]}}
    for in_memory in (True, False):
        data = load(name="parquet", augment=AUGMENT, mix="cutmix", extra_views=turned, in_memory=in_memory)
        base, view = (pictures(data, [torch.arange(24)], pipeline=p) for p in (data.augment, data.views["turned"]))
        assert torch.equal(view, base.flip(2, 3))


def test_nothing_is_mixed_at_evaluation(load, parquet):
    plain, data = load(name="parquet"), load(name="parquet", mix="mixup", validation=0.25)
    (found,) = Feed(data.test, data.evaluate, 1, CPU).batches([torch.arange(8)], 0)
    assert torch.equal(found, plain.test.source.images)
    (found,) = Feed(data.validation, data.evaluate, 1, CPU).batches([torch.arange(6)], 0)
    assert torch.equal(found, plain.train.source.images[data.validation.ids])


def test_partners_are_of_the_training_split(load, parquet):
    data = load(name="parquet", mix="mixup", validation=0.25, samples=9)
    partners = torch.cat([data.mix.draw(data.train.ids, view, (10, 10)).partner for view in range(40)])
    assert set(partners.tolist()) == set(data.train.ids.tolist())


def test_describe_tells_everything_that_changes_pictures(load, parquet):
    def described(**section):
        return load(name="parquet", augment=AUGMENT, **section).augment.describe()

    *before, (name, version, options) = described(mix={"mixup": {"alpha": 0.4}})
    assert before == described() and load(name="parquet").mix is None
    assert (name, version, options["alpha"], options["p"]) == ("mixup", Mixup.version, 0.4, 1.0)
    assert len(options["partners"]) == 64
    others = [{"mix": "mixup"}, {"mix": {"cutmix": {"alpha": 0.4}}}, {"mix": {"mixup": {"alpha": 0.4}}, "samples": 20}]
    assert all(described(**other)[-1] != (name, version, options) for other in others)


def test_mixed_pictures_are_not_numbered(load, parquet):
    """Or a cache would take the crop and the mirror image for all that there is to tell of one."""
    turned = {"turned": {"of": "base", "augment": []}}
    assert load(name="parquet", augment=AUGMENT).augment.variants == 162
    data = load(name="parquet", augment=AUGMENT, mix="mixup", extra_views=turned)
    assert data.augment.variants is None and data.views["turned"].variants is None


def test_pictures_of_several_sizes_need_one_before_they_are_mixed(load, tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "folder" / split, 6, size=lambda i: (8 + i, 14 - i))
    with pytest.raises(
        ConfigError, match=r"data\.mix: pictures \d+ and \d+ are .*random_resized_crop in data\.augment"
    ):
        pictures(load(name="folder", mix="mixup"), [torch.arange(12)])
    data = load(name="folder", mix="mixup", augment=[{"random_resized_crop": {"size": 8}}])
    assert torch.equal(pictures(data, [torch.arange(12)]), pictures(data, torch.arange(12).split(1)))


def test_what_is_given_is_left_alone(load, parquet):
    data = load(name="parquet", mix="cutmix")
    before = data.train.source.images.clone()
    pictures(data, [torch.arange(24)])
    assert torch.equal(data.train.source.images, before)
    assert isinstance(data.mix, CutMix)
