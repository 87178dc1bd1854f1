"""What does not fit is refused before anything is written, with both sides shown."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdray.data.augment import Crop
from kdray.errors import ConfigError, MismatchError
from kdray.registry import Registry
from kdray.teacher.cache import Cache
from kdray.teacher.storage import Folder
from tests.conftest import merged
from tests.data.data_files import encode, write_parquet
from tests.teacher.cache_lab import EXACT, assert_same_run

DATA = {"samples": 40, "augment": [{"crop": {"padding": 1}}]}
CONFIG = {"data": DATA, "losses": {"kd": {}}, "schedule": {"epochs": 3}, "engine": {"log_every": 1}}
STRONG = {"strong": {"augment": [{"cutout": {"size": 3}}]}}


@pytest.fixture
def made(lab, teacher):
    """A cache at EXACT; gives the teacher's section that reads it."""
    section = {**teacher, "cache": EXACT}
    lab.precompute("made", **CONFIG, teacher=section)
    return section


def refused(lab, name="a", **changes) -> str:
    assert MismatchError.exit_code == 4
    return lab.refused(MismatchError, name, **merged(CONFIG, changes))


def differing(message: str) -> list[str]:
    first, *lines = message.splitlines()
    assert first.endswith("cache/here is a cache of something else:")
    return lines


# Something else


def test_other_weights(lab, made):
    weights = load_file(made["checkpoint"])
    weights["fc.bias"][3] += 1e-6
    save_file(weights, lab.path / "other.safetensors")
    (line,) = differing(refused(lab, teacher={**made, "checkpoint": "other.safetensors"}))
    there = lab.cache.manifest().identity["teacher"]["weights"][:12]
    assert line.startswith(f"  weights of the teacher (SHA-256): the cache has {there}…; asked for is ")
    assert there not in line.rpartition(";")[2]


@pytest.mark.parametrize(
    "of_teacher, line",
    [
        ({"cache": {**EXACT, "dtype": "fp16"}}, "dtype: the cache has fp32; asked for is fp16"),
        ({"cache": {**EXACT, "top_k": 3}}, "top_k: the cache has none; asked for is 3"),
        ({"precision": "bf16"}, "arithmetic: the cache has fp32; asked for is bf16"),
        (
            {"normalize": {"mean": [0.25], "std": [0.5]}},
            "normalisation: the cache has [[0.30",  # that of the digits
        ),
        (
            {"layers": {"head": "fc"}},
            "the network's options: the cache has {'widths': [16, 32]}; asked for is {'widths': [16, 32], 'layers': ",
        ),
    ],
)
def test_another_form_or_arithmetic(lab, made, of_teacher, line):
    (found,) = differing(refused(lab, teacher={**made, **of_teacher}))
    assert found.strip().startswith(line)


def test_arithmetic_follows_the_engines(lab, made):
    (line,) = differing(refused(lab, teacher=made, engine={"precision": "bf16"}))
    assert line == "  arithmetic: the cache has fp32; asked for is bf16"


@pytest.mark.parametrize(
    "augment, asked",
    [
        (["crop"], "crop {padding: 4}"),
        ([{"crop": {"padding": 1}}, "flip"], "crop {padding: 1}, flip {p: 0.5}"),
        ([], "none"),
    ],
)
def test_another_augmentation(lab, made, augment, asked):
    *_, line = differing(refused(lab, teacher=made, data={"augment": augment}))
    assert line == f"  augmentation: the cache has crop {{padding: 1}}; asked for is {asked}"


def test_another_version_of_an_augmentation(lab, made, monkeypatch):
    monkeypatch.setattr(Crop, "version", 2)
    (line,) = differing(refused(lab, teacher=made))
    assert line == "  augmentation: the cache has crop {padding: 1}; asked for is crop {padding: 1} (version 2)"


PLUGIN = """
from kdray import Augmentation, AugmentationSpec, hookimpl
class Darker(Augmentation):
    version = 1
    def __call__(self, images, u):
        return images // 2
@hookimpl
def kdray_augmentations():
    return [AugmentationSpec("darker", Darker)]
"""


def test_another_version_of_a_plugins_augmentation(lab, teacher):
    section, changes = {**teacher, "cache": EXACT}, {"augment": ["darker"]}
    for name, version in (("first", "version = 1"), ("second", "version = 2")):
        file = lab.path / name / "darker.py"
        file.parent.mkdir()
        file.write_text(PLUGIN.replace("version = 1", version))
        lab.registry = Registry.load(paths=[file])
        if name == "first":
            lab.precompute("made", **merged(CONFIG, {"data": changes}), teacher=section)
    (line,) = differing(refused(lab, teacher=section, data=changes))
    assert line == "  augmentation: the cache has darker; asked for is darker (version 2)"


def test_pictures_instead_of_views_and_another_seeds_views(lab, made):
    by_view = {"augment": [{"random_resized_crop": {"size": 8}}]}
    lines = differing(refused(lab, teacher=made, data=by_view))
    assert lines[0] == "  pages: the cache has the 9 pictures of a sample; asked for is views"
    made["cache"] = {**EXACT, "path": "cache/views"}
    lab.precompute("views", **merged(CONFIG, {"data": by_view}), teacher=made)
    message = refused(lab, teacher=made, data=by_view, seed=5)
    assert "seeds of the views: the cache has [0]; asked for is [5]" in message


def parquet(path, changed=False):
    path.mkdir()
    for split, first in (("train", 0), ("test", 100)):
        pictures = [encode(first + i, 8, 8) for i in range(40)]
        if changed and split == "train":
            pictures[7] = encode(7777, 8, 8)
        write_parquet(path / f"{split}-0.parquet", [i % 10 for i in range(40)], pictures)


def test_one_picture_that_changed(lab):
    parquet(lab.path / "then")
    parquet(lab.path / "now", changed=True)
    normalize = {"mean": [0.5] * 3, "std": [0.25] * 3}
    data = {"name": "parquet", "path": "then", "batch_size": 20, "samples": None, "normalize": normalize}
    student = {"model": "convnet", "widths": [4]}
    run = lab.run("tutor", data=data, student=student, schedule={"epochs": 1})
    section = {**student, "checkpoint": str(run.path / "student.safetensors"), "cache": EXACT}
    lab.precompute("made", **merged(CONFIG, {"data": data}), teacher=section)
    (line,) = differing(refused(lab, teacher=section, data={**data, "path": "now"}))
    then = lab.cache.manifest().identity["data"]["fingerprint"][:12]
    assert line.startswith(f"  data (fingerprint): the cache has {then}…; asked for is ")
    assert then not in line.rpartition(";")[2]


def test_everything_at_once_is_told_at_once(lab, made, monkeypatch):
    monkeypatch.setattr(Crop, "version", 2)
    cache = {**EXACT, "dtype": "bf16", "top_k": 2}
    lines = differing(refused(lab, teacher={**made, "cache": cache, "precision": "bf16"}))
    assert [line.split(":")[0].strip() for line in lines] == ["arithmetic", "augmentation", "dtype", "top_k"]


# Too little


def test_fewer_views_than_the_epochs_show(lab, teacher):
    section = {**teacher, "cache": EXACT}
    by_view = {"augment": [{"random_resized_crop": {"size": 8}}]}
    lab.precompute("made", **merged(CONFIG, {"data": by_view}), teacher=section)
    message = refused(lab, teacher=section, data=by_view, schedule={"epochs": 10})
    assert "it has 120 of the 400 answers that this run needs" in message
    assert "missing are answers on views 3, 4, 5, 6, 7 … (7 of them)" in message
    assert "`kdray precompute` with the same config adds what is missing" in message
    lab.run("enough", **merged(CONFIG, {"data": {**by_view, "views": 3}, "schedule": {"epochs": 4}}), teacher=section)


def test_fewer_pictures_than_the_epochs_show(lab, made):
    message = refused(lab, teacher=made, schedule={"epochs": 20})
    there = sum(shard.rows for shard in lab.cache.shards("logits"))
    assert f"it has {there} of the " in message and "on pictures 0, 1, 2, 3, 4 … (9 of them)" in message


def test_other_samples_than_were_answered(lab, made):
    message = refused(lab, teacher=made, data={"samples": 60})
    assert "is not complete" in message


def test_an_output_that_is_not_there(lab, made):
    message = refused(lab, teacher=made, losses={"kd": {}, "crd": {"dim": 8, "negatives": {"kind": "batch"}}})
    assert "it has 0 of the " in message


def test_a_view_that_is_not_there(lab, made):
    message = refused(lab, teacher=made, losses={"crld": {}}, data={"extra_views": STRONG})
    assert message.startswith("there is no teacher cache at ") and "cache/here/view-strong: " in message
    assert "nearest" not in message  # the student's own pictures are no nearer than nothing


# Damage


def test_a_shard_that_was_cut_short(lab, made):
    (shard,) = lab.shards()
    shard.write_bytes(shard.read_bytes()[:-100])
    message = refused(lab, teacher=made)
    assert message.startswith(f"{shard} is damaged: ") and "those that were written had" in message
    assert f"`kdray cache verify {lab.path / 'cache/here'} --repair` removes what is damaged" in message


def test_a_flipped_byte_in_a_shard(lab, made):
    (shard,) = lab.shards()
    good = shard.read_bytes()
    for place in (0, len(good) // 2, len(good) - 1):
        shard.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert f"{shard.name} is damaged" in refused(lab, teacher=made)
    shard.write_bytes(good)
    lab.run("sound", **CONFIG, teacher=made)


def test_a_flipped_byte_in_any_of_many_shards(lab, teacher):
    """Whichever the spot checks look into."""
    config = merged(CONFIG, {"data": {"samples": 100, "augment": [{"random_resized_crop": {"size": 8}}]}})
    config |= {"schedule": {"epochs": 40}, "teacher": {**teacher, "cache": EXACT}}
    lab.precompute("made", **config)
    assert len(lab.shards()) == 16
    for shard in lab.shards():
        good = shard.read_bytes()
        shard.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        assert f"{shard.name} is damaged" in lab.refused(MismatchError, "a", **config)
        shard.write_bytes(good)


def test_shards_of_one_picture_under_the_name_of_another(lab, made):
    (shard,) = lab.shards()
    shard.rename(shard.with_name("0001" + shard.name[4:]))
    assert f"0001{shard.name[4:]} is damaged: its name and " in refused(lab, teacher=made)


def test_every_flipped_byte_of_the_manifest(lab, made):
    """Blanks aside, which say nothing, what is read is what was written or an error."""

    class Held(Folder):
        def read(self, name):
            return damaged

    good = damaged = lab.path.joinpath("cache/here/manifest.json").read_bytes()
    cache = Cache(Held("there", lab.path))
    written, told, harmless = cache.manifest(), set(), 0
    for place in range(len(good)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            damaged = good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :]
            try:
                assert cache.manifest() == written, (place, flip)
                harmless += 1
            except MismatchError as error:
                told.add(str(error).split(": ")[0].split(", and")[0].removeprefix("there/"))
    assert "manifest.json is damaged" in told and len(told) < 5
    assert harmless < 0.05 * 4 * len(good)


def test_a_damaged_manifest_refuses_a_run(lab, made):
    file = lab.path / "cache/here/manifest.json"
    file.write_text(file.read_text().replace('"samples": 1437', '"samples": 1438'))
    message = refused(lab, teacher=made)
    assert f"{file} is damaged: it does not fit its own checksum" in message
    assert "remove the folder and run `kdray precompute` again" in message
    file.write_text("{")
    assert f"{file} is damaged: JSONDecodeError" in refused(lab, teacher=made)


def test_a_newer_format(lab, made):
    file = lab.path / "cache/here/manifest.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    message = refused(lab, teacher=made)
    assert f"{file} has format 2, and this kdray knows format 1: a newer version wrote it" in message
    assert "Update kdray, or give another teacher.cache.path" in message


def test_answers_that_are_not_the_teachers(lab, made):
    """Sound files, of the right identity: only asking the teacher tells."""
    (shard,) = lab.cache.shards("logits")
    opened = lab.cache.open("logits", shard, 1437)
    lab.cache.remove("logits", shard)
    lab.cache.write("logits", opened.keys, {"values": opened.parts["values"] + 1}, 1437)
    message = refused(lab, teacher=made)
    assert "8 of 8 stored logits are not what the teacher answers now: of sample " in message
    assert "The network's code, an augmentation or the pictures have changed" in message


# Nothing


def test_no_cache_at_all(lab, teacher):
    message = refused(lab, teacher={**teacher, "cache": EXACT})
    where = lab.path / "cache/here"
    assert message == f"there is no teacher cache at {where}: `kdray precompute` with the same config makes it."


def test_the_nearest_cache_is_shown(lab, teacher):
    """In the folder of caches, named after what is in them."""
    lab.precompute("near", **CONFIG, teacher={**teacher, "cache": {"dtype": "bf16"}})
    lab.precompute("far", **merged(CONFIG, {"data": {"augment": ["flip"]}}), teacher={**teacher, "cache": {"top_k": 2}})
    (near, *_) = [row for row in lab.path.glob("cache/*/manifest.json") if "bf16" in row.read_text()]
    message = refused(lab, teacher={**teacher, "cache": {"dtype": "fp32"}})
    assert "there is no teacher cache at " in message
    assert message.splitlines()[1:] == [
        f"The nearest there is, {near.parent}, is of something else:",
        "  dtype: the cache has bf16; asked for is fp32",
    ]


def test_the_same_cache_at_another_place_is_shown(lab, made):
    message = refused(lab, teacher={**made, "cache": {**EXACT, "path": "cache/typo"}})
    assert f"The nearest there is, {lab.path / 'cache/here'}, is of just this: give it as teacher.cache.path" in message


def test_a_teacher_that_is_not_trained_yet(lab, teacher):
    student = {"model": "convnet", "widths": [4]}
    lab.config("recipe", student=student, data={"samples": 40}, schedule={"epochs": 1})
    section = {**student, "train": "recipe.yaml", "cache": {}}
    message = refused(lab, teacher=section)
    assert message.startswith("teacher is to answer from a cache, and is not trained yet: nothing is stored.")
    assert "`kdray precompute` with the same config does both" in message
    assert not lab.path.joinpath("runs").exists()
    lab.precompute("both", **CONFIG, teacher=section)
    lab.run("a", **CONFIG, teacher=section)


def test_nothing_is_trained_first_for_a_run_that_cannot_be(lab, teacher):
    """Another teacher is to be trained; what is known without it is told before."""
    student = {"model": "convnet", "widths": [4, 8]}
    lab.config("recipe", student=student, data={"samples": 40}, schedule={"epochs": 1})
    losses = {"a": {"use": "kd", "teacher": "one"}, "b": {"use": "kd", "teacher": "two"}}
    teachers = {"one": {**teacher, "cache": EXACT}, "two": {**student, "train": "recipe.yaml"}}
    assert "there is no teacher cache at " in refused(lab, losses=losses, teachers=teachers)
    teachers = {"one": teacher, "two": {**student, "train": "recipe.yaml", "cache": {**EXACT, "fill": True}}}
    config = merged(CONFIG, {"losses": {**losses, "at": {"teacher": "two"}}, "teachers": teachers})
    assert "losses.at reads its features" in lab.refused(ConfigError, "a", **config)
    assert not lab.path.joinpath("runs").exists()


# Fallback


@pytest.mark.parametrize(
    "why, changes",
    [
        ("there is no teacher cache at", {}),
        ("is a cache of something else: dtype: the cache has fp32; asked for is fp16", {"dtype": "fp16"}),
        ("losses.at reads its features", {}),
    ],
)
def test_fallback_says_so_in_one_line_and_trains_live(lab, teacher, capfd, why, changes):
    config = merged(CONFIG, {"losses": {"kd": {}, "at": {}} if "at reads" in why else {"kd": {}}})
    if changes:
        lab.precompute("made", **config, teacher={**teacher, "cache": EXACT})
    live = lab.run("live", **config, teacher=teacher)
    capfd.readouterr()
    cache = {**EXACT, **changes, "fallback": "live"}
    assert_same_run(lab.run("fallen", **config, teacher={**teacher, "cache": cache}), live)
    told = [line for line in capfd.readouterr().err.splitlines() if "answers live" in line]
    assert len(told) == 1 and told[0].startswith("teacher answers live (cache.fallback), since") and why in told[0]


def test_fallback_is_not_needed_where_the_cache_serves(lab, made, capfd, asked):
    made["cache"] = {**EXACT, "fallback": "live"}
    asked.clear()
    run = lab.run("a", **CONFIG, teacher=made)
    assert sum(asked) == 8 and "answers live" not in capfd.readouterr().err
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])["cache"].endswith("cache/here")
    assert torch.isfinite(load_file(run.path / "student.safetensors")["fc.weight"]).all()


def test_fallback_before_a_teacher_is_trained(lab, capfd):
    student = {"model": "convnet", "widths": [4]}
    lab.config("recipe", student=student, data={"samples": 40}, schedule={"epochs": 1})
    section = {**student, "train": "recipe.yaml", "cache": {"fallback": "live"}}
    lab.run("a", **CONFIG, teacher=section)
    assert capfd.readouterr().err.count("answers live (cache.fallback)") == 1
