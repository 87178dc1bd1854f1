"""From memory and streamed: the same bytes, in order; errors reach the consumer; threads end."""

import threading
import time

import pytest
import torch
from data_files import encode, write_folder, write_parquet

from kdray.data.feed import Feed
from kdray.errors import ConfigError

ORDER = list(torch.randperm(24, generator=torch.Generator().manual_seed(3)).split(5))


def feed(data, threads, split="train", pipeline="augment"):
    return Feed(getattr(data, split), getattr(data, pipeline), threads, torch.device("cpu"))


AUGMENT = ["crop", "flip", {"random_resized_crop": {"size": 6}}]


def test_streamed_and_in_memory_are_the_same_bytes(load, parquet):
    memory, stream = (load(name="parquet", augment=AUGMENT, in_memory=kept) for kept in (True, False))
    assert memory.train.source.images is not None and stream.train.source.images is None
    expected = list(feed(memory, 1).batches(ORDER, 4))
    assert [len(b) for b in expected] == [5, 5, 5, 5, 4]
    for threads in (1, 3):
        found = list(feed(stream, threads).batches(ORDER, 4))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert all(b.dtype == torch.uint8 and b.is_contiguous() for b in found)


@pytest.mark.parametrize("in_memory", [True, False])
def test_any_split_over_workers_gives_the_same_pictures(load, parquet, in_memory):
    data = load(name="parquet", augment=AUGMENT, in_memory=in_memory)
    whole = torch.cat(list(feed(data, 2).batches([torch.arange(24)], 1)))
    parts = [torch.cat(list(feed(data, 2).batches(torch.arange(24)[r::2].split(3), 1))) for r in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_a_sample_looks_the_same_in_any_subset(load, parquet):
    """Views hang on the original index, not on the position in the subset."""
    whole, part = (load(name="parquet", augment=AUGMENT, samples=n) for n in (None, 9))
    assert not torch.equal(part.train.ids, torch.arange(9))
    (all_of_it,), (some,) = (list(feed(d, 1).batches([torch.arange(len(d.train))], 6)) for d in (whole, part))
    assert torch.equal(some, all_of_it[part.train.ids])


def test_evaluation_pictures_are_untouched(load, parquet):
    data = load(name="parquet", augment=AUGMENT)
    (found,) = feed(data, 1, "test", "evaluate").batches([torch.arange(8)], 0)
    assert torch.equal(found, torch.stack([data.test.source.read(i) for i in range(8)]))


def test_pictures_of_several_sizes_are_streamed_to_one(load, tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "folder" / split, 6, size=lambda i: (8 + i, 14 - i))
    resize = [{"resize": {"size": 8}}, {"center_crop": {"size": 8}}]
    data = load(name="folder", augment=[{"random_resized_crop": {"size": 8}}], evaluate=resize)
    assert data.train.source.images is None
    assert next(feed(data, 2).batches([torch.arange(12)], 0)).shape == (12, 3, 8, 8)
    assert next(feed(data, 2, "test", "evaluate").batches([torch.arange(12)], 0)).shape == (12, 3, 8, 8)
    with pytest.raises(ConfigError, match="one size"):
        next(feed(load(name="folder"), 2).batches([torch.arange(12)], 0))
    with pytest.raises(ConfigError, match="one size"):
        load(name="folder", in_memory=True)


def test_a_corrupt_picture_in_the_middle_is_named(load, tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "folder" / split, 6)
    bad = tmp_path / "folder" / "train" / "dog" / "002.png"  # the ninth picture: index 8
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"picture 8 .*dog/002\.png"):
        load(name="folder")
    data = load(name="folder", in_memory=False, normalize={"mean": [0.5] * 3, "std": [0.2] * 3})
    found = feed(data, 2).batches(torch.arange(12).split(2), 0)
    with pytest.raises(ConfigError, match=r"picture 8 .*dog/002\.png"):
        for _ in range(6):
            next(found)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:100] + bytes(40) + b[140:], lambda b: b""])
def test_damaged_rows_are_named(load, tmp_path, damage):
    folder = tmp_path / "parquet"
    folder.mkdir()
    pictures = [encode(i) for i in range(24)]
    pictures[17] = damage(pictures[17])
    write_parquet(folder / "train.parquet", [i % 4 for i in range(24)], pictures)
    write_parquet(folder / "test.parquet", [0, 1, 2, 3])
    with pytest.raises(ConfigError, match=r"picture 17 \(row 17 of .*train\.parquet"):
        load(name="parquet")


def test_closing_ends_the_threads_and_what_they_were_to_do(load, parquet, monkeypatch):
    data, before, read = load(name="parquet", in_memory=False), threading.active_count(), []
    whole = data.train.source.read
    monkeypatch.setattr(data.train.source, "read", lambda i: (time.sleep(0.02), read.append(i), whole(i))[2])
    found = feed(data, 2).batches(torch.arange(24).split(4), 0)
    next(found)
    assert threading.active_count() > before
    found.close()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert len(read) < 16  # of 20 that were waiting
