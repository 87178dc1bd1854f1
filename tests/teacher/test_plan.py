"""What a run will ask for, and how the work is divided: whoever plans the same work plans the same shards."""

import numpy as np
import pytest
import torch

from kdray.data.source import Source
from kdray.errors import ConfigError
from kdray.teacher.cache import Cache
from kdray.teacher.codec import Codec
from kdray.teacher.pictures import Pictures
from kdray.teacher.plan import ITEMS, LEAST, MOST, items
from kdray.teacher.storage import open_storage
from kdray.teacher.store import Store
from tests.teacher.cache_lab import EXACT, make_pipeline

CROP = {"data": {"samples": 160, "augment": [{"crop": {"padding": 1}}]}}  # 9 pictures of a sample
KD = {"losses": {"ce": {}, "kd": {}}}


@pytest.mark.parametrize(
    "count, size",
    [
        (0, 0),
        (10, 10),
        (LEAST + 1, LEAST),
        (LEAST * ITEMS, LEAST),
        (LEAST * ITEMS + 1, LEAST + 1),
        (10**6, MOST),
    ],
)
def test_items_are_of_equal_size_and_whole(count, size):
    keys = np.arange(count) * 3
    found = items(keys)
    assert [len(part) for part in found[:-1]] == [size] * (len(found) - 1)
    assert not count or (0 < len(found[-1]) <= size and np.array_equal(np.concatenate(found), keys))
    assert bool(found) == bool(count)


def test_the_keys_that_the_epochs_meet(lab, teacher):
    teacher = {**teacher, "cache": EXACT}
    (row,) = lab.precompute("few", **CROP, **KD, teacher=teacher, schedule={"epochs": 3})
    data = make_pipeline({"crop": {"padding": 1}}, seed=0)
    keys = np.sort(np.concatenate([lab.cache.open("logits", s, 1437).keys for s in lab.cache.shards("logits")]))
    used = np.unique(keys % 1437)
    assert len(used) == 160
    ids = torch.from_numpy(used)
    met = {int(v) * 1437 + int(i) for view in range(3) for i, v in zip(ids, data.variant(ids, view))}
    assert sorted(met) == keys.tolist()
    assert (row["needed"], row["missing_before"], row["computed"], row["live_forwards"]) == (len(met),) * 3 + (480,)
    assert 160 < len(met) < 480


def test_views_repeat_where_the_config_says_so(lab, teacher):
    """Kept by view: two views are two answers a sample, whatever the number of epochs."""
    augment = [{"random_resized_crop": {"size": 8}}]
    config = {"teacher": {**teacher, "cache": EXACT}, "schedule": {"epochs": 5}, **KD}
    (row,) = lab.precompute("views", data={"samples": 50, "augment": augment, "views": 2}, **config)
    assert row["needed"] == 2 * 50 and row["live_forwards"] == 5 * 50
    (row,) = lab.precompute("fresh", data={"samples": 50, "augment": augment}, **config)
    assert (row["needed"], row["missing_before"]) == (5 * 50, 3 * 50)


def test_all_pictures_serve_every_number_of_epochs_and_every_seed(lab, teacher):
    config = {"data": {**CROP["data"], "samples": None}, "teacher": {**teacher, "cache": EXACT}, **KD}
    (row,) = lab.precompute("all", **config, everything=True)
    assert row["needed"] == row["computed"] == 9 * 1437
    for seed in (0, 1):
        (row,) = lab.precompute(f"seed{seed}", **config, seed=seed, schedule={"epochs": 30})
        assert (row["missing_before"], row["computed"]) == (0, 0) and row["needed"] > 8 * 1437


def test_all_views_are_those_of_limited_augmentations(lab, teacher):
    """`data.views: all` changes no run; it refuses what no cache could hold."""
    config = {"teacher": {**teacher, "cache": EXACT}, "schedule": {"epochs": 5}, **KD}
    (given,) = lab.precompute("all", **config, data={**CROP["data"], "views": "all"})
    (default,) = lab.precompute("default", **config, **CROP)
    assert given["needed"] == default["needed"] and default["missing_before"] == 0
    for more, culprit in (({"augment": [{"random_resized_crop": {"size": 8}}]}, "augment"), ({"mix": "mixup"}, "mix")):
        message = lab.refused(ConfigError, "a", **config, data={**CROP["data"], "views": "all", **more})
        assert f"data.{culprit} makes too many to number them" in message and "a number of views" in message


@pytest.fixture
def store(tmp_path) -> Store:
    """500 samples with 9 pictures each, and nothing stored."""
    source = Source(torch.zeros(500, dtype=torch.int64), ["a"], 1, torch.zeros(500, 1, 8, 8, dtype=torch.uint8))
    pictures = Pictures(make_pipeline({"crop": {"padding": 1}}), source)
    return Store(Cache(open_storage(str(tmp_path))), pictures, {"logits": 2, "embedding": 3}, Codec("fp32"), {})


def write(store: Store, output: str, keys: np.ndarray) -> None:
    store.cache.write(output, keys, {"values": torch.zeros(len(keys), store.outputs[output])}, 500)


def plan(store: Store):
    """Of all pictures; as `Plan.make` plans a run."""
    from types import SimpleNamespace

    from kdray.teacher.plan import Plan

    data = SimpleNamespace(train=SimpleNamespace(ids=torch.arange(500)))
    return Plan.make(store, data, [], everything=True)


def test_what_is_lacking_after_a_part_of_the_work(store):
    whole = plan(store)
    assert (whole.needed, whole.missing) == (4500, 4500) and whole.pages_missing() == list(range(9))
    first, second, *_ = whole.items
    for output in store.outputs:
        write(store, output, first)
    write(store, "logits", second)  # its embedding was still being written
    part = plan(store)
    assert [len(keys) for keys in part.lacking[:3]] == [0, len(second), len(whole.items[2])]
    assert part.missing == 4500 - len(first) and part.pages_missing() == list(range(9))


def test_answers_of_other_work_count_too(store):
    """A run that fills a cache, or one of another number of epochs, has other shards."""
    keys = np.arange(0, 4500, 7)
    for output in store.outputs:
        write(store, output, keys)
    found = plan(store)
    lacking = np.concatenate(found.lacking)
    assert found.missing == 4500 - len(keys) and not set(lacking) & set(keys)
    write(store, "embedding", np.arange(4500))
    write(store, "logits", np.arange(500, 4500))
    assert plan(store).pages_missing() == [0] and plan(store).missing == 500 - len(keys[keys < 500])


def test_items_do_not_depend_on_what_is_there(store):
    before = plan(store).items
    for output in store.outputs:
        write(store, output, np.arange(0, 4500, 7))
        write(store, output, before[3])
    after = plan(store).items
    assert len(before) == len(after) and all(map(np.array_equal, before, after))


def test_work_that_was_broken_off_goes_on_to_the_same_bytes(lab, teacher, monkeypatch):
    from kdray.teacher.cache import Cache

    config = {"data": {"samples": 400, "augment": [{"crop": {"padding": 1}}]}, "schedule": {"epochs": 6}}
    config |= {"losses": {"kd": {}, "crd": {"dim": 8, "negatives": {"kind": "batch"}}}}
    lab.precompute("whole", **config, teacher={**teacher, "cache": {**EXACT, "path": "cache/whole"}})
    total, write = len(lab.shards("cache/whole")), Cache.write
    assert total > 8

    left = 3

    def write_few(self, *arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return write(self, *arguments)

    config["teacher"] = {**teacher, "cache": EXACT}
    for _ in range(total):
        left = 3  # an odd number: an item has a shard of logits and one of embeddings
        monkeypatch.setattr(Cache, "write", write_few)
        try:
            lab.precompute("broken", **config)
            break
        except KeyboardInterrupt:
            assert lab.shards()
    assert lab.contents() == lab.contents("cache/whole")
