"""A shard proves what it is by its name."""

import os
import re

import numpy as np
import pytest
import torch

from kdray.errors import MismatchError
from kdray.teacher.cache import Cache
from kdray.teacher.shard import digest_of_keys, open_shard, pack, parse
from kdray.teacher.storage import open_storage

SAMPLES = 100
KEYS = np.array([203, 207, 299, 300, 650])
PARTS = {"values": torch.arange(10.0).reshape(5, 2), "rest": torch.arange(5.0)}


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(open_storage(str(tmp_path)))


@pytest.fixture
def written(cache, tmp_path):
    """The path of a small shard."""
    return tmp_path / "logits" / cache.write("logits", KEYS, PARTS, SAMPLES)


def opened(path):
    return open_shard(parse(path.name), path, SAMPLES, "there")


def test_a_name_says_what_is_in_it(written):
    shard = parse(written.name)
    assert (shard.first, shard.last, shard.rows) == (2, 6, 5)
    assert shard.keys == digest_of_keys(KEYS) != digest_of_keys(KEYS[:-1])
    assert [shard.has_page(page) for page in (1, 2, 4, 6, 7)] == [False, True, True, True, False]


@pytest.mark.parametrize("keys", [KEYS, KEYS[:3], KEYS[-1:], np.arange(5 * SAMPLES, 6 * SAMPLES)])
def test_what_is_written_is_read(cache, tmp_path, keys):
    parts = {"values": torch.randn(len(keys), 3).half(), "indices": torch.randint(9, (len(keys), 3)).to(torch.uint8)}
    found = opened(tmp_path / "logits" / cache.write("logits", keys, parts, SAMPLES))
    assert found.keys.tolist() == keys.tolist() and found.parts.keys() == parts.keys()
    assert all(torch.equal(found.parts[name], parts[name]) for name in parts)


def test_equal_work_is_an_equal_file():
    views = {"rest": PARTS["rest"].clone(), "values": PARTS["values"].T.contiguous().T}  # as it may come
    assert pack(KEYS, PARTS, SAMPLES) == pack(KEYS.copy(), views, SAMPLES)
    others = [
        pack(KEYS + 1, PARTS, SAMPLES),
        pack(KEYS, {**PARTS, "rest": PARTS["rest"] + 1}, SAMPLES),
        pack(KEYS[:4], {name: x[:4] for name, x in PARTS.items()}, SAMPLES),
    ]
    assert len({pack(KEYS, PARTS, SAMPLES)[0], *(name for name, _ in others)}) == 4


def test_files_of_other_names_are_no_shards(cache, written, tmp_path):
    for name in (".writing-abc", "notes.txt", written.name + "~", "0-1.2.3.safetensors"):
        (tmp_path / "logits" / name).write_bytes(b"")
    assert [shard.name for shard in cache.shards("logits")] == [written.name]
    assert cache.shards("embedding") == []


def damage(cache: Cache) -> list[str]:
    """What a check of every shard finds; opening them must find as much."""
    found = [str(error) for _, error in cache.check("logits", cache.shards("logits")) if error]
    for shard in cache.shards("logits"):
        try:
            cache.open("logits", shard, SAMPLES)
        except MismatchError as error:
            assert str(error) in found
        else:
            assert not found
    return found


def test_a_sound_shard_passes(cache, written):
    assert damage(cache) == []


def test_every_single_flipped_byte_is_found(cache, written):
    good = written.read_bytes()
    assert len(good) < 500
    for place in range(len(good)):
        for flip in (0x01, 0xFF):
            written.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
            assert len(damage(cache)) == 1, (place, flip)
    written.write_bytes(good)
    assert damage(cache) == []


def test_every_truncation_is_found(cache, written):
    good = written.read_bytes()
    for length in range(len(good)):
        written.write_bytes(good[:length])
        assert len(damage(cache)) == 1, length
    written.write_bytes(good + b"\0")
    assert len(damage(cache)) == 1


def test_the_message_names_the_file_and_both_checksums(cache, written):
    written.write_bytes(written.read_bytes()[:-1])
    (message,) = damage(cache)
    digest = parse(written.name).digest[:12]
    assert message.startswith(f"{written} is damaged: ") and f"those that were written had {digest}…" in message
    assert len(set(re.findall(r"[0-9a-f]{12}…", message))) == 2
    assert f"`kdray cache verify {cache.where} --repair`" in message


def test_a_renamed_shard_is_found(cache, tmp_path):
    """Whatever of its name is changed: names are all that tells what is there."""
    name = cache.write("logits", np.array([203, 207]), {"values": torch.zeros(2, 3)}, SAMPLES)
    path, (first, rest) = tmp_path / "logits" / name, name.split("-")
    last, rows, keys, digest, kind = rest.split(".")
    others = [
        f"0003-0003.{rows}.{keys}.{digest}.{kind}",  # answers to other pictures
        f"0001-{last}.{rows}.{keys}.{digest}.{kind}",
        f"{first}-{last}.3.{keys}.{digest}.{kind}",
        f"{first}-{last}.{rows}.{digest_of_keys(np.array([203, 208]))}.{digest}.{kind}",
        f"{first}-{last}.{rows}.{keys}.{'0' * 32}.{kind}",
    ]
    for other in others:
        moved = path.rename(path.with_name(other))
        assert len(damage(cache)) == 1, other
        moved.rename(path)
    assert damage(cache) == []


def test_reading_maps_the_file(written):
    """The tensors are the file's own bytes: what is written to it later, in place, shows in them."""
    found = opened(written)
    assert found.parts["values"][0, 0] == 0
    data = written.read_bytes()
    place = data.index(PARTS["values"].numpy().tobytes())
    with open(written, "r+b") as file:
        file.seek(place)
        file.write(torch.tensor(7.0).numpy().tobytes())
    assert found.parts["values"][0, 0] == 7


def test_a_damaged_copy_of_a_stores_file_is_fetched_again(tmp_path):
    """Of the same size and time, so that the store has no reason to send it. Damage in the store stays damage."""
    storage = open_storage(f"memory://{tmp_path.name}", tmp_path)
    cache = Cache(storage)
    name = f"logits/{cache.write('logits', KEYS, PARTS, SAMPLES)}"
    (shard,) = cache.shards("logits")
    copy = storage.local(name)
    good, times = copy.read_bytes(), copy.stat()
    bad = good[:-1] + bytes([good[-1] ^ 1])
    copy.write_bytes(bad)
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert storage.local(name).read_bytes() == bad
    assert cache.open("logits", shard, SAMPLES).keys.tolist() == KEYS.tolist()
    assert copy.read_bytes() == good and damage(cache) == []
    storage.write(name, bad)
    (message,) = (str(error) for _, error in cache.check("logits", [shard]) if error)
    assert message.startswith(f"memory://{tmp_path.name}/{name} is damaged: ")
    copy.unlink()
    with pytest.raises(MismatchError, match="is damaged"):
        cache.open("logits", shard, SAMPLES)
