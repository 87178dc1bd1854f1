"""From memory and streamed: the same bytes, in order; errors reach the consumer; threads end."""

import threading

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
    data, gate, read = load(name="parquet", in_memory=False), threading.Event(), []
    whole = data.train.source.read

    def slow(i):
        if i >= 4:  # all but the first batch
            gate.wait(10)
        read.append(i)
        return whole(i)

    monkeypatch.setattr(data.train.source, "read", slow)
    before = set(threading.enumerate())
    found = feed(data, 2).batches(torch.arange(24).split(4), 0)
    next(found)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    found.close()
    gate.set()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()
    assert len(read) <= 12  # the first batch, and what the two threads had begun; 20 pictures were waiting


def test_auto_streams_what_is_too_big(load, parquet, monkeypatch):
    bytes_of_train = 24 * 3 * 10 * 10
    monkeypatch.setattr("kdray.data.source.MEMORY_LIMIT", bytes_of_train)
    assert load(name="parquet").train.source.images is not None
    monkeypatch.setattr("kdray.data.source.MEMORY_LIMIT", bytes_of_train - 1)
    data = load(name="parquet")
    assert data.train.source.images is None and data.test.source.images is not None
    assert load(name="parquet", in_memory=True).train.source.images is not None


@pytest.mark.parametrize("pictures", [7, 1000])
def test_statistics_do_not_depend_on_where_the_pictures_are(load, parquet, monkeypatch, pictures):
    monkeypatch.setattr("kdray.data.build.STATISTICS", pictures)
    memory, stream = (load(name="parquet", in_memory=kept) for kept in (True, False))
    assert (memory.mean, memory.std) == (stream.mean, stream.std)


def test_pictures_in_memory_are_not_copied(load, parquet):
    source = load(name="parquet").train.source
    assert source.images_on(torch.device("cpu")).data_ptr() == source.images.data_ptr()
    elsewhere = source.images_on(torch.device("meta"))
    assert source.images_on(torch.device("meta")) is elsewhere  # once a device, not once a feed


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(load, parquet, channels):
    data = load(name="parquet", channels=channels, augment=["crop", "flip"])
    assert data.channels == channels == len(data.mean)
    assert next(feed(data, 1).batches([torch.arange(5)], 0)).shape == (5, channels, 10, 10)


def test_pictures_of_several_sizes_are_the_same_in_any_batch(load, tmp_path):
    """Neighbours of one size are augmented together, others alone: nobody can tell."""
    for split in ("train", "test"):
        write_folder(tmp_path / "folder" / split, 12, size=lambda i: (9, 12) if i < 10 else (14, 8))
    data = load(name="folder", augment=["flip", {"random_resized_crop": {"size": 8}}])
    whole = torch.cat(list(feed(data, 2).batches(torch.arange(24).split(24), 3)))
    singly = torch.cat(list(feed(data, 2).batches(torch.arange(24).split(1), 3)))
    assert torch.equal(whole, singly)
