"""What is on disk becomes labels and pictures, or an error that says what to do."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from data_files import encode, write_folder, write_parquet
from torchvision import datasets

from kdray.data.decode import decode
from kdray.data.normalize import Normalize
from kdray.errors import ConfigError


def test_digits(load):
    data = load(name="digits")
    assert (len(data.train) + len(data.test), data.num_classes, data.channels) == (1797, 10, 1)
    images = torch.cat([data.train.source.images, data.test.source.images])
    assert images.shape[1:] == (1, 8, 8) and images.max() == 255 and len(images.unique()) == 17
    shares = data.test.labels.bincount() / data.train.labels.bincount()
    assert shares.max() - shares.min() < 0.02
    assert torch.equal(load(name="digits", seed=5).test.source.images, data.test.source.images)


def test_normalisation_is_measured_where_nobody_gives_it(load):
    data = load(name="digits", samples=50)
    pixels = data.train.source.images.double() / 255  # all of them: `samples` must not move it
    assert data.mean == pytest.approx((pixels.mean().item(),), rel=1e-9)
    assert data.std == pytest.approx((pixels.std(correction=0).item(),), rel=1e-9)
    assert load(name="digits", normalize={"mean": [0.1], "std": [0.3]}).std == (0.3,)
    x = Normalize(data.mean, data.std)(data.train.source.images, torch.float64)
    assert abs(x.mean()) < 1e-9 and abs(x.std(correction=0) - 1) < 1e-9


def test_normalize_is_the_formula():
    images = torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    found = Normalize(mean, std)(images, torch.float64)
    expected = (images.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(
        3, 1, 1
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ConfigError, match="channels"):
        Normalize((0.5,), (0.2,))(images, torch.float32)


def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in torchvision's format, with ten pictures, and the checksums to match."""
    root = tmp_path / "cifar10" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)

    def write(name, content):
        data = pickle.dumps(content)
        (root / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    train = write("data_batch_1", {"data": pixels[:10], "labels": list(range(10))})
    test = write("test_batch", {"data": pixels[10:], "labels": list(range(10))})
    key, names = "label_names", [f"class{i}" for i in range(10)]
    meta = write("batches.meta", {key: names})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [train])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [test])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": key, "md5": meta[1]})
    return root, pixels


def no_network(*arguments, **named):
    raise OSError("the network is unreachable")


def test_cifar10(load, tmp_path, monkeypatch):
    _, pixels = cifar(tmp_path, monkeypatch)
    data = load(name="cifar10")
    assert torch.equal(data.train.source.images, torch.from_numpy(pixels[:10]).view(10, 3, 32, 32))
    assert torch.equal(data.test.source.images, torch.from_numpy(pixels[10:]).view(10, 3, 32, 32))
    assert data.test.labels.tolist() == list(range(10)) and data.mean == (0.4914, 0.4822, 0.4465)


def test_cifar10_damaged_or_missing_and_no_network(load, tmp_path, monkeypatch):
    root, _ = cifar(tmp_path, monkeypatch)
    (root / "test_batch").write_bytes(b"cut")
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(ConfigError, match=r"cifar-10-batches-py.*unreachable"):
        load(name="cifar10")
    with pytest.raises(ConfigError, match=r"elsewhere/cifar-10-batches-py.*data\.path"):
        load(name="cifar10", path=str(tmp_path / "elsewhere"))


def test_folder(load, tmp_path):
    write_folder(tmp_path / "mine" / "train", 3)
    write_folder(tmp_path / "mine" / "val", 2)
    data = load(name="folder", path=str(tmp_path / "mine"))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(data.test) == 4
    assert data.train.source.class_names == ["cat", "dog"] and data.channels == 3
    assert load(name="folder", path=str(tmp_path / "mine"), channels=1).train.source.read(0).shape == (1, 10, 10)


def test_path_is_relative_to_the_current_directory(load, tmp_path, monkeypatch):
    write_folder(tmp_path / "here" / "mine" / "train", 1)
    write_folder(tmp_path / "here" / "mine" / "test", 1)
    monkeypatch.chdir(tmp_path / "here")
    assert len(load(name="folder", path="mine").train) == 2


def test_folder_errors(load, tmp_path):
    root = tmp_path / "folder"
    with pytest.raises(ConfigError, match=r"folder/train.*train/<class>/<picture>"):
        load(name="folder")
    write_folder(root / "train", 2)
    with pytest.raises(ConfigError, match=r"folder/test.*folder/val"):
        load(name="folder")
    write_folder(root / "test", 2, classes=("cat", "horse"))
    with pytest.raises(ConfigError, match=r"dog.*horse"):
        load(name="folder")
    for file in (root / "train" / "dog").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match="dog"):
        load(name="folder")


def test_parquet(load, parquet):
    data = load(name="parquet")
    assert (len(data.train), len(data.test), data.num_classes) == (24, 8, 4)
    assert data.train.source.images.shape == (24, 3, 10, 10)
    for i in (0, 7, 23):
        assert torch.equal(data.train.source.images[i], decode(encode(i), 3, "it"))


def test_parquet_of_plain_bytes_other_names_and_several_files(load, parquet, tmp_path):
    for part in range(2):
        labels, pictures = [i % 4 for i in range(12)], [encode(12 * part + i) for i in range(12)]
        write_parquet(parquet / f"t-{part}.parquet", labels, pictures, image="img", label="fine", plain=True)
    names = {"image": "img", "label": "fine", "train": "t-*.parquet", "test": "t-0.parquet"}
    assert torch.equal(load(name="parquet", **names).train.source.images, load(name="parquet").train.source.images)


def test_parquet_without_the_columns(load, parquet):
    with pytest.raises(ConfigError, match=r"no column 'img'.*image, label"):
        load(name="parquet", image="img")
    with pytest.raises(ConfigError, match=r"no column 'fine'.*image, label"):
        load(name="parquet", label="fine")


@pytest.mark.parametrize("bad, text", [(None, "row 11 .*train.parquet.*'label'"), (-1, "row 11 .*train.parquet.*-1")])
def test_parquet_with_a_bad_label(load, parquet, bad, text):
    labels = [i % 4 for i in range(24)]
    labels[11] = bad
    write_parquet(parquet / "train.parquet", labels)
    with pytest.raises(ConfigError, match=text):
        load(name="parquet")


def test_parquet_missing_and_damaged(load, parquet):
    with pytest.raises(ConfigError, match=r"absent\.parquet.*data\.train"):
        load(name="parquet", train="absent.parquet")
    whole = (parquet / "train.parquet").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not Parquet at all"):
        (parquet / "train.parquet").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"train\.parquet cannot be read as Parquet"):
            load(name="parquet")
    write_parquet(parquet / "train.parquet", [i % 5 for i in range(24)])
    with pytest.raises(ConfigError, match="other classes"):
        load(name="parquet")


def test_fingerprint_follows_the_content_and_not_the_place(load, parquet, tmp_path):
    whole = load(name="parquet").train.source.fingerprint()
    assert whole == load(name="parquet", in_memory=False).train.source.fingerprint()
    parquet.rename(tmp_path / "moved")
    assert whole == load(name="parquet", path=str(tmp_path / "moved")).train.source.fingerprint()
    labels = [i % 4 for i in range(24)]
    labels[3], labels[2] = labels[2], labels[3]
    write_parquet(tmp_path / "moved" / "train.parquet", labels)
    other = load(name="parquet", path=str(tmp_path / "moved")).train.source.fingerprint()
    pictures = [encode(i + (i == 4) * 999) for i in range(24)]
    write_parquet(tmp_path / "moved" / "train.parquet", [i % 4 for i in range(24)], pictures)
    assert len({whole, other, load(name="parquet", path=str(tmp_path / "moved")).train.source.fingerprint()}) == 3


def test_subsets_are_disjoint_stratified_and_seeded(load):
    data = load(name="digits", validation=0.2, samples=205)
    whole = load(name="digits").train
    train, held = set(data.train.ids.tolist()), set(data.validation.ids.tolist())
    assert len(train) == 205 and len(held) == round(0.2 * len(whole)) and not train & held
    counts = data.train.labels.bincount()
    assert counts.max() - counts.min() <= 1
    shares = data.validation.labels.bincount() / whole.labels.bincount()
    assert (shares - 0.2).abs().max() < 0.01
    again, other = (load(name="digits", validation=0.2, samples=205, seed=s) for s in (0, 1))
    assert torch.equal(again.train.ids, data.train.ids) and torch.equal(again.validation.ids, data.validation.ids)
    assert not torch.equal(other.train.ids, data.train.ids)
    assert not torch.equal(other.validation.ids, data.validation.ids)
    assert torch.equal(data.train.labels, data.train.source.labels[data.train.ids])


def test_more_samples_than_there_are(load, parquet):
    assert len(load(name="parquet", samples=24).train) == 24
    with pytest.raises(ConfigError, match=r"25.*24"):
        load(name="parquet", samples=25)
    with pytest.raises(ConfigError, match=r"24.*18.*6"):
        load(name="parquet", samples=24, validation=0.25)
