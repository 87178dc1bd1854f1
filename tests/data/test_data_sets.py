"""What is on disk becomes labels and pictures, or an error that says what to do."""

import hashlib
import io
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_files import encode, write_folder, write_parquet
from PIL import Image
from torchvision import datasets

from kdray.config.schema import DataConfig
from kdray.data.build import load_data
from kdray.data.decode import decode
from kdray.data.normalize import Normalize
from kdray.data.source import Source
from kdray.errors import ConfigError, PluginError
from kdray.specs import DatasetSpec


def test_digits_are_scikit_learns(load):
    """Pictures, classes and the drawn fifth: the file that kdray keeps is what scikit-learn says."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data, found = load(name="digits"), load_digits()
    scans = torch.from_numpy(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
    parts = train_test_split(range(len(scans)), test_size=0.2, random_state=0, stratify=found.target)
    for split, chosen in zip((data.train, data.test), map(sorted, parts)):
        assert torch.equal(split.source.images, scans[chosen])
        assert split.labels.tolist() == found.target[chosen].tolist()


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


def test_a_failed_download_leaves_nothing(load, tmp_path, monkeypatch):
    cifar(tmp_path, monkeypatch)

    def cut(url, root, filename=None, **others):
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes(b"half of it")
        raise OSError("connection reset")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", cut)
    before = sorted(tmp_path.rglob("*"))
    for path in ("a/b/c", "cifar10/empty"):
        with pytest.raises(ConfigError, match="connection reset"):
            load(name="cifar10", path=str(tmp_path / path))
        assert sorted(tmp_path.rglob("*")) == before
    keep = tmp_path / "cifar10" / "mine.txt"
    keep.write_text("mine")
    (tmp_path / "cifar10" / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(ConfigError, match="connection reset"):
        load(name="cifar10")
    assert keep.exists() and not list((tmp_path / "cifar10").glob("*.gz"))


def test_stl10(load, tmp_path, monkeypatch):
    """Its pictures are stored column by column, a channel after the other."""
    root = tmp_path / "stl10" / "stl10_binary"
    root.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 96, 96), dtype=np.uint8)
    for name, part in (("train", pixels[:20]), ("test", pixels[20:])):
        (root / f"{name}_X.bin").write_bytes(part.tobytes())
        (root / f"{name}_y.bin").write_bytes(bytes(1 + i % 10 for i in range(len(part))))
    (root / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    files = [[file.name, hashlib.md5(file.read_bytes()).hexdigest()] for file in sorted(root.glob("*.bin"))]
    monkeypatch.setattr(datasets.STL10, "train_list", [file for file in files if file[0].startswith("train")])
    monkeypatch.setattr(datasets.STL10, "test_list", [file for file in files if file[0].startswith("test")])
    data = load(name="stl10")
    assert torch.equal(data.train.source.images, torch.from_numpy(pixels[:20]).transpose(2, 3))
    assert torch.equal(data.test.source.images, torch.from_numpy(pixels[20:]).transpose(2, 3))
    assert data.train.labels.tolist() == [*range(10), *range(10)] and data.num_classes == 10


def test_fashion_mnist(load, tmp_path, monkeypatch):
    raw = tmp_path / "fashion_mnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    for part, n in (("train", 20), ("t10k", 10)):
        pictures = pixels[:20] if part == "train" else pixels[20:]
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pictures.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + bytes(i % 10 for i in range(n)))
    data = load(name="fashion_mnist")
    assert torch.equal(data.test.source.images, torch.from_numpy(pixels[20:, None]))
    assert (len(data.train), data.channels, data.num_classes) == (20, 1, 10)
    damaged = raw / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"FashionMNIST/raw, or it is damaged"):
        load(name="fashion_mnist")


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


def test_the_classes_of_parquet_are_those_of_the_training_set(load, parquet):
    write_parquet(parquet / "train.parquet", [i % 5 for i in range(24)])
    data = load(name="parquet")  # no test picture happens to be of class 4
    assert data.num_classes == 5 and data.test.source.class_names == ["0", "1", "2", "3", "4"]
    write_parquet(parquet / "test.parquet", [0, 5, 1])
    with pytest.raises(ConfigError, match=r"row 1 of .*test\.parquet: label 5 .*5 classes \(0 … 4\)"):
        load(name="parquet")


@pytest.mark.parametrize("labels, lacking", [([1, 2, 3], 0), ([0, 1, 3, 4], 2)])
def test_parquet_labels_have_no_gaps(load, parquet, labels, lacking):
    write_parquet(parquet / "train.parquet", labels * 6)
    with pytest.raises(ConfigError, match=rf"go up to {labels[-1]}, but none is {lacking}"):
        load(name="parquet")


def test_parquet_with_named_classes(load, parquet):
    names = ["ant", "bee", "cow", "dog", "eel"]
    write_parquet(parquet / "train.parquet", [0, 1, 3], names=names)  # the names tell that there are five
    write_parquet(parquet / "test.parquet", [4, 2], names=names)
    data = load(name="parquet")
    assert data.train.source.class_names == names and data.test.labels.tolist() == [4, 2]
    write_parquet(parquet / "test.parquet", [4, 2], names=names[::-1])
    with pytest.raises(ConfigError, match=r"test\.parquet names other classes .*train\.parquet"):
        load(name="parquet")


def test_parquet_with_texts_as_labels(load, parquet):
    write_parquet(parquet / "train.parquet", ["cow", "ant", "bee", "ant"], kind=pa.string())
    write_parquet(parquet / "test.parquet", ["cow", "bee"], kind=pa.string())
    data = load(name="parquet")
    assert data.train.labels.tolist() == [2, 0, 1, 0] and data.test.labels.tolist() == [2, 1]
    write_parquet(parquet / "test.parquet", ["cow", "elk"], kind=pa.string())
    with pytest.raises(ConfigError, match=r"row 1 of .*label elk .*3 classes"):
        load(name="parquet")
    write_parquet(parquet / "train.parquet", [0.0, 1.0], kind=pa.float32())
    with pytest.raises(ConfigError, match=r"holds float; labels are whole numbers"):
        load(name="parquet")


def test_rows_are_counted_within_their_file(load, parquet):
    """Files whose label columns differ in width are one data set all the same."""
    for part, kind in enumerate((pa.int64(), pa.int8(), pa.int32())):
        pictures = [encode(i) for i in range(6)]
        if part == 1:
            pictures[0] = pictures[5] = None
        write_parquet(parquet / f"shard-{part}.parquet", [i % 4 for i in range(6)], pictures, kind=kind)
    data = load(
        name="parquet", train="shard-*.parquet", in_memory=False, normalize={"mean": [0.5] * 3, "std": [0.2] * 3}
    )
    assert len(data.train) == 18 and data.train.labels.tolist() == [i % 4 for i in range(6)] * 3
    assert torch.equal(data.train.source.read(13), decode(encode(1), 3, "it"))
    with pytest.raises(ConfigError, match=r"picture 6 \(row 0 of .*shard-1\.parquet\) is missing"):
        data.train.source.read(6)
    with pytest.raises(ConfigError, match=r"picture 11 \(row 5 of .*shard-1\.parquet\) is missing"):
        data.train.source.read(11)


def test_parquet_without_rows(load, parquet):
    write_parquet(parquet / "test.parquet", [])
    with pytest.raises(ConfigError, match=r"test\.parquet has no rows"):
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


def test_a_class_that_runs_out_is_made_up_for_by_the_others(load, parquet):
    write_parquet(parquet / "train.parquet", [0] * 20 + [1] * 2 + [2] * 10 + [3] * 8)
    assert load(name="parquet", samples=20).train.labels.bincount().tolist() == [6, 2, 6, 6]
    assert load(name="parquet", samples=38).train.labels.bincount().tolist() == [18, 2, 10, 8]
    held = load(name="parquet", validation=0.5).validation
    assert held.labels.bincount().tolist() == [10, 1, 5, 4]


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_validation_without_samples_or_without_a_rest(load, parquet, share):
    with pytest.raises(ConfigError, match=r"data\.validation"):
        load(name="parquet", validation=share)


def test_no_whole_batch_to_train_on(load, parquet):
    assert load(name="parquet", batch_size=24, last_batch="drop")
    with pytest.raises(ConfigError, match=r"last_batch.*24 training samples.*25"):
        load(name="parquet", batch_size=25, last_batch="drop")


def test_evaluation_is_not_random(load, parquet):
    with pytest.raises(ConfigError, match=r"data\.evaluate: crop is random"):
        load(name="parquet", evaluate=["crop"])


def test_a_channel_without_contrast_cannot_be_normalised(load, parquet):
    flat = io.BytesIO()
    Image.new("RGB", (10, 10), (10, 20, 30)).save(flat, "PNG")
    write_parquet(parquet / "train.parquet", [0, 1, 2, 3], [flat.getvalue()] * 4)
    with pytest.raises(ConfigError, match=r"data\.normalize"):
        load(name="parquet")
    assert load(name="parquet", normalize={"mean": [0.1] * 3, "std": [0.2] * 3})


def source(**changes):
    images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    return Source(
        **{"labels": torch.tensor([0, 1] * 3), "class_names": ["a", "b"], "channels": 1, "images": images} | changes
    )


@pytest.mark.parametrize(
    "made, error, text",
    [
        (None, PluginError, "expected a kdray.Source"),
        (source(labels=torch.zeros(6)), PluginError, "labels must be"),
        (source(channels=3), PluginError, r"expected torch.uint8 \(6, 3"),
        (source(images=torch.zeros(6, 1, 4, 4)), PluginError, "torch.float32"),
        (source(labels=torch.tensor([0, 1, 1, 2, 0, 1])), ConfigError, "picture 3 has label 2"),
        (source(labels=torch.tensor([], dtype=torch.long), images=None), ConfigError, "no pictures"),
    ],
)
def test_what_a_plugin_returns_is_checked(tmp_path, made, error, text):
    spec = DatasetSpec("mine", lambda options, path, split: made)
    with pytest.raises(error, match=text):
        load_data(DataConfig(name="mine", batch_size=2), 0, SimpleNamespace(get=lambda kind, name: spec), tmp_path)
