"""`kdray precompute` and `kdray cache`, and what `kdray train` says of a cache that does not fit."""

import json
import re
import shutil

import pytest
import yaml
from safetensors.torch import save_file

DATA = {"name": "digits", "batch_size": 50, "samples": 100, "augment": [{"crop": {"padding": 1}}]}
KD = {"data": DATA, "losses": {"kd": {}}, "schedule": {"epochs": 3}}


@pytest.fixture
def teacher(teacher_weights):
    return {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}


@pytest.fixture
def config(desk, teacher) -> str:
    return desk.config(**KD, teacher=teacher)


USE = "teacher.cache={}"


@pytest.fixture
def made(desk, config) -> str:
    """A config with a cache, in the folder that is named after what is in it."""
    assert desk("precompute", config).code == 0
    return config


def caches(desk) -> list:
    return sorted(path for path in desk.path.glob("cache/*") if path.is_dir())


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def damage(desk) -> str:
    """Flip a byte of a shard; its name."""
    shard = sorted(desk.path.rglob("cache/**/*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    return shard.name


# kdray precompute


def test_precompute_tells_its_plan_and_what_it_did(desk, config):
    result = desk("precompute", config)
    assert result.code == 0
    (cache,) = caches(desk)
    plan = r"answers +(\d+): 100 samples × 3 views, those that the epochs show of the 9 pictures of each"
    needed = int(re.search(plan, result.err)[1])
    assert 100 < needed < 300
    assert f"teacher -> {cache}\n" in result.err
    assert "stored    logits as fp16: 24 bytes each" in result.err
    assert f"forwards  {needed} to compute; a run with the live teacher makes 300: the first run saves " in result.err
    assert re.search(r"teacher: about .+ at [\d,]+ a second \(1 worker, measured\)", result.err)
    assert f"{needed}/{needed}" in result.err
    assert f"cache: {cache}" in result.out and "logits as fp16" in result.out
    assert "use it: kdray train … teacher.cache={}" in result.out


def test_the_hint_works_as_it_is_printed(desk, made):
    hint = re.search(r"use it: kdray train … (\S+)", desk("precompute", made).out)[1]
    result = desk("train", made, hint)
    assert result.code == 0 and f"its answers are stored in {caches(desk)[0]}" in result.err
    assert "use it" not in desk("precompute", made, hint).out  # the config says so itself


def test_the_hint_for_several_teachers_is_whole(desk, teacher):
    losses = {"a": {"use": "kd", "teacher": "one"}, "b": {"use": "kd", "teacher": "two"}}
    other = {**teacher, "normalize": {"mean": [0.5], "std": [0.5]}}
    config = desk.config(**{**KD, "losses": losses}, teachers={"one": teacher, "two": other})
    hint = re.search(r"use it: kdray train … (.+)", desk("precompute", config).out)[1].split()
    assert hint == ["teachers.one.cache={}", "teachers.two.cache={}"]
    result = desk("train", config, *hint)
    assert result.code == 0 and all(f"its answers are stored in {cache}" in result.err for cache in caches(desk))


def test_dry_run_writes_nothing(desk, config):
    before = contents(desk.path)
    result = desk("precompute", config, "--dry-run")
    assert result.code == 0 and "answers " in result.err and "about" not in result.err and not result.out
    assert contents(desk.path) == before and not caches(desk)
    (row,) = json.loads(desk("precompute", config, "--dry-run", "--json").out)
    assert row["computed"] == 0 and row["missing_before"] == row["needed"] > 0
    assert contents(desk.path) == before


def test_dry_run_trains_no_teacher(desk):
    student = {"model": "convnet", "widths": [4]}
    desk.config("recipe.yaml", name="tutor")
    config = desk.config(**KD, teacher={**student, "train": "recipe.yaml"})
    result = desk("precompute", config, "--dry-run")
    assert result.code == 0 and desk.runs() == [] and not caches(desk)
    assert "teacher is not trained yet: " in result.err and "recipe.yaml would train it first" in result.err
    assert f"teacher -> {desk.path / 'cache/convnet-digits-…'}\n" in result.err and "answers " in result.err
    assert "teacher is not trained yet" in desk.refused("cache", "verify", "--config", config, code=4)
    result = desk("precompute", config)
    assert result.code == 0 and "training the teacher: tutor-" in result.err
    assert desk("train", config, USE).code == 0


def test_the_break_even_of_more_answers_than_a_run_asks(desk, config):
    result = desk("precompute", config, "--all", "--dry-run")
    assert "answers   900: 100 samples × all their 9 pictures" in result.err
    assert "900 to compute; a run with the live teacher makes 300: pays from run 4 on" in result.err


def test_json(desk, config):
    (row,) = json.loads(desk("precompute", config, "--json").out)
    (cache,) = caches(desk)
    size = sum(file.stat().st_size for file in cache.rglob("*.safetensors"))
    assert (row["teacher"], row["view"], row["path"]) == ("teacher", "", str(cache))
    assert (row["dtype"], row["top_k"], row["outputs"], row["live_forwards"]) == ("fp16", None, ["logits"], 300)
    assert row["needed"] == row["missing_before"] == row["computed"] and row["seconds"] > 0
    assert row["bytes"] == row["needed"] * row["bytes_a_picture"]
    pages = 4 * row["needed"]  # a shard of several pages says of each row which
    assert row["bytes"] + pages < size < row["bytes"] + pages + 1000


@pytest.fixture
def no_ray(monkeypatch):
    from kdray.launch.session import RaySession

    def started(self):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(RaySession, "__enter__", started)


def test_a_finished_cache_is_not_computed_again(desk, config, no_ray):
    with pytest.raises(AssertionError, match="Ray was started"):
        desk("precompute", config, "--num-workers", 2)
    assert desk("precompute", config).code == 0
    before = {file: file.stat().st_mtime_ns for file in caches(desk)[0].rglob("*")}
    result = desk("precompute", config, "--num-workers", 2)
    assert result.code == 0 and "everything is there already" in result.err and "nothing to pay" in result.err
    (row,) = json.loads(desk("precompute", config, "--num-workers", 2, "--json").out)
    assert (row["missing_before"], row["computed"]) == (0, 0)
    assert {file: file.stat().st_mtime_ns for file in caches(desk)[0].rglob("*")} == before


def test_only_what_is_missing_is_computed(desk, made):
    (few,) = json.loads(desk("precompute", made, "--json").out)
    (row,) = json.loads(desk("precompute", made, "schedule.epochs=9", "--json").out)
    assert row["needed"] - row["missing_before"] == few["needed"] and row["computed"] == row["missing_before"] > 0
    result = desk("precompute", made, "schedule.epochs=20")
    assert f"{row['needed']} of them there already" in result.err


def test_all(desk, config):
    result = desk("precompute", config, "--all", "--json")
    (row,) = json.loads(result.out)
    assert row["needed"] == row["computed"] == 900
    for seed in (0, 3):
        changed = ["data.samples=100", "schedule.epochs=40", f"seed={seed}"]
        (row,) = json.loads(desk("precompute", config, *changed, "--dry-run", "--json").out)
        assert (row["missing_before"] == 0) == (seed == 0)  # another seed takes other samples of the 1,437
    message = desk.refused("precompute", config, "data.augment=[{random_resized_crop: {size: 8}}]", "--all")
    assert "--all: data.augment makes too many pictures of a sample" in message


def test_configs_without_a_teacher(desk):
    assert "this config has no teacher whose answers could be stored" in desk.refused("precompute", desk.config())


def test_a_loss_on_feature_maps(desk, teacher):
    student = {"model": "convnet", "widths": [4, 8]}
    config = desk.config(**{**KD, "losses": {"kd": {}, "at": {}}}, teacher=teacher, student=student)
    for command in (("train", config, USE), ("precompute", config), ("precompute", config, "--dry-run")):
        message = desk.refused(*command)
        assert "a cache holds logits and embedding, and losses.at reads its features" in message
    assert not caches(desk)


def test_a_teacher_whose_numbers_fp16_cannot_hold(desk, config, teacher):
    from safetensors.torch import load_file

    weights = load_file(teacher["checkpoint"])
    save_file({**weights, "fc.weight": weights["fc.weight"] * 1e5}, desk.path / "loud.safetensors")
    loud = "teacher.checkpoint=loud.safetensors"
    message = desk.refused("precompute", config, loud)
    assert "more than fp16 can hold: set teacher.cache.dtype to bf16 or fp32" in message
    assert desk("precompute", config, loud, "teacher.cache.dtype=bf16").code == 0
    message = desk.refused("precompute", config, "teacher.cache.top_k=10")
    assert "teacher.cache.top_k is 10, and there are 10 classes" in message


# kdray train


@pytest.mark.parametrize(
    "changes, both_sides",
    [
        ([f"{USE[:-2]}{{dtype: fp32}}"], ["dtype: the cache has fp16; asked for is fp32"]),
        ([USE, "teacher.cache.top_k=3"], ["top_k: the cache has none; asked for is 3"]),
        ([USE, "teacher.precision=bf16"], ["arithmetic: the cache has fp32; asked for is bf16"]),
        ([USE, "data.augment=[crop]"], ["pictures of a sample", "the cache has crop {padding: 1}; asked for is crop"]),
        ([USE, "schedule.epochs=30"], ["is not complete: it has ", " answers that this run needs"]),
        ([USE, "teacher.cache.path=elsewhere"], ["there is no teacher cache at ", "is of just this: give it as"]),
    ],
)
def test_train_refuses_what_does_not_fit(desk, made, changes, both_sides):
    message = desk.refused("train", made, *changes, code=4)
    assert all(side in message for side in both_sides), message
    assert desk.refused("train", made, *changes, "--dry-run", code=4) == message


def test_train_refuses_damage(desk, made):
    name = damage(desk)
    message = desk.refused("train", made, USE, code=4)
    assert f"{name} is damaged" in message
    command = re.search(r"`kdray (cache verify .* --repair)`", message)[1].split()
    assert desk(*command).code == 4 and desk("precompute", made).code == 0  # as the message says
    assert desk("train", made, USE).code == 0


def test_a_dry_run_says_where_the_answers_come_from(desk, made):
    result = desk("train", made, USE, "--dry-run")
    assert result.code == 0 and f"answers come from {caches(desk)[0]}" in result.out
    fill = desk("train", made, "teacher.cache.fill=true", "--dry-run")
    assert fill.code == 0 and f"answers are added to {caches(desk)[0]}" in fill.out


def test_fallback(desk, made):
    result = desk("train", made, "teacher.cache={dtype: fp32, fallback: live}")
    assert result.code == 0
    (line,) = [line for line in result.err.splitlines() if "answers live (cache.fallback)" in line]
    assert "there is no teacher cache at" in line and "asked for is fp32" in line


# kdray cache info


def test_info(desk, made):
    assert desk("precompute", made, "teacher.cache.top_k=3", "losses.crd={dim: 8, negatives: {kind: batch}}").code == 0
    result = desk("cache", "info")
    assert result.code == 0
    assert all(str(cache) in result.out for cache in caches(desk))
    for fact in ("the 3 largest logits", "augmentation: crop {padding: 1}", "widths [16, 32]", "the 9 pictures of a s"):
        assert fact in result.out
    rows = {row["path"]: row for row in json.loads(desk("cache", "info", "--json").out)}
    assert set(rows) == {str(cache) for cache in caches(desk)}
    whole = next(row for row in rows.values() if not row["stored"]["top_k"])
    (needed,) = {r["needed"] for r in json.loads(desk("precompute", made, "--json").out)}
    assert whole["answers"] == {"logits": needed} and whole["stored"] == {"dtype": "fp16", "top_k": None}
    assert whole["accuracy"]["top1"] > 0.85 and whole["accuracy"]["samples"] == 360
    assert whole["bytes"] == sum(f.stat().st_size for f in desk.path.joinpath(whole["path"]).rglob("*.safetensors"))
    (row,) = json.loads(desk("cache", "info", whole["path"], "--json").out)
    assert row == whole


def test_info_of_a_view(desk, config):
    changes = ["losses.crld={}", "data.extra_views={strong: {augment: [{cutout: {size: 3}}]}}"]
    assert desk("precompute", config, *changes).code == 0
    first, second = json.loads(desk("cache", "info", caches(desk)[0], "--json").out)
    assert second["path"] == first["path"] + "/view-strong" and second["answers"] == {"logits": 300}
    assert "pictures      views; augmentation: cutout" in desk("cache", "info", caches(desk)[0]).out


def test_info_of_what_cannot_be_read(desk, made):
    assert "there is no teacher cache at nowhere" in desk.refused("cache", "info", "nowhere")
    file = caches(desk)[0] / "manifest.json"
    file.write_text(file.read_text()[:-10])
    result = desk("cache", "info")
    assert result.code == 0 and f"error         {file} is damaged" in result.out
    assert "is damaged" in json.loads(desk("cache", "info", "--json").out)[0]["error"]


def test_info_where_there_is_nothing(desk):
    result = desk("cache", "info")
    assert result.code == 0 and f"no caches in {desk.path / 'cache'}" in result.out
    assert json.loads(desk("cache", "info", "--json").out) == []


# kdray cache verify


def test_verify_a_sound_cache(desk, made):
    (cache,) = caches(desk)
    for arguments in ([cache], ["--config", made], [cache, "--config", made], ["--config", made, "--set", USE]):
        result = desk("cache", "verify", *arguments)
        assert result.code == 0 and f"sound: {cache}" in result.out, result.err


def test_verify_needs_to_know_which(desk, made):
    assert "which cache? Give its path, or --config CONFIG" in desk.refused("cache", "verify")
    assert "there is no teacher cache at nowhere" in desk.refused("cache", "verify", "nowhere")
    other = ["--config", made, "--set", "teacher.cache.dtype=bf16"]
    assert f"there is no teacher cache at {desk.path / 'cache'}" in desk.refused("cache", "verify", *other)


def test_verify_compares_with_the_config(desk, made):
    (cache,) = caches(desk)
    message = desk.refused("cache", "verify", cache, "--config", made, "--set", "teacher.cache.dtype=bf16", code=4)
    assert "dtype: the cache has fp16; asked for is bf16" in message
    message = desk.refused("cache", "verify", cache, "--config", made, "--set", "schedule.epochs=30", code=4)
    assert "is not complete" in message


def test_verify_of_one_of_several_teachers(desk, teacher):
    losses = {"a": {"use": "kd", "teacher": "one"}, "b": {"use": "kd", "teacher": "two"}}
    other = {**teacher, "normalize": {"mean": [0.5], "std": [0.5]}}
    config = desk.config(**{**KD, "losses": losses}, teachers={"one": teacher, "two": other})
    assert desk("precompute", config).code == 0
    result = desk("cache", "verify", "--config", config)
    assert result.code == 0 and all(str(cache) in result.out for cache in caches(desk))
    message = desk.refused("cache", "verify", caches(desk)[0], "--config", config)
    assert "of which of its teachers? Give --set teachers.NAME.cache.path=PATH in its place" in message


@pytest.mark.parametrize("by_config", [False, True])
@pytest.mark.parametrize("how", ["precompute", "fill"])
def test_repair_and_precompute_again_give_the_same_folder(desk, config, by_config, how):
    """Of a cache that a run has filled, too: it has other shards."""
    more = ["losses.crd={dim: 8, negatives: {kind: batch}}"]
    if how == "fill":
        assert desk("train", config, *more, "teacher.cache.fill=true").code == 0
    else:
        assert desk("precompute", config, *more).code == 0
    (cache,) = caches(desk)
    before, name = contents(cache), damage(desk)
    where = ["--config", config, *(x for change in more for x in ("--set", change))] if by_config else [cache]
    message = desk.refused("cache", "verify", *where, code=4)
    assert "1 damaged shards (`--repair` removes them):" in message and name in message
    assert name in {file.name for file in cache.rglob("*")}
    message = desk.refused("cache", "verify", *where, "--repair", code=4)
    assert "1 damaged shards (removed; `kdray precompute` computes them again):" in message
    assert name not in {file.name for file in cache.rglob("*")}
    assert desk("precompute", config, *more).code == 0
    if how == "precompute":
        assert contents(cache) == before
    sets = [x for change in more for x in ("--set", change)]
    assert desk("cache", "verify", "--config", config, *sets).code == 0
    assert desk("train", config, *more, USE, "--name", "again").code == 0


NETWORK = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
    def forward(self, x):
        return self.fc(x.flatten(1))
def tutor(num_classes):
    return Net(num_classes)
"""


def test_verify_finds_a_teacher_whose_code_has_changed(desk, monkeypatch):
    """Its name, options and weights are what they were: the live teacher's answers tell."""
    import sys

    import torch

    desk.write("tutors.py", NETWORK)
    weights = {"fc.weight": torch.randn(10, 64, generator=torch.Generator().manual_seed(0)), "fc.bias": torch.zeros(10)}
    save_file(weights, desk.path / "tutor.safetensors")
    config = desk.config(**KD, teacher={"model": "tutors:tutor", "checkpoint": "tutor.safetensors"})
    assert desk("precompute", config).code == 0
    assert desk("cache", "verify", "--config", config).code == 0
    desk.write("tutors.py", NETWORK.replace("x.flatten(1))", "x.flatten(1)) * 1.1"))
    monkeypatch.delitem(sys.modules, "tutors")
    shutil.rmtree(desk.path / "__pycache__", ignore_errors=True)
    for command in (("cache", "verify", "--config", config), ("train", config, USE)):
        message = desk.refused(*command, code=4)
        assert "stored logits are not what the teacher answers now: of sample " in message
        assert "The network's code, an augmentation or the pictures have changed" in message
    then, now = map(float, re.search(r"([-\d.]+) is stored, and it answers ([-\d.]+)\. The", message).groups())
    assert now == pytest.approx(1.1 * then, rel=2e-3)  # fp16, and five digits are shown
    monkeypatch.delitem(sys.modules, "tutors")


def test_verify_of_a_store(desk, config):
    """Without copies of it on this machine."""
    where = f"memory://{desk.path.name}/cache"
    assert desk("precompute", config, f"teacher.cache.path={where}").code == 0
    result = desk("cache", "verify", where)
    assert result.code == 0 and f"sound: {where}" in result.out
    assert where in desk("cache", "info", where).out


# kdray cache prune


def test_prune_shows_first_and_removes_with_yes(desk, made):
    desk.write("configs/kept.yaml", desk.path.joinpath(made).read_text())
    (kept,) = caches(desk)
    assert desk("precompute", made, "teacher.cache.dtype=fp32").code == 0
    (other,) = (cache for cache in caches(desk) if cache != kept)
    before = contents(desk.path)
    for arguments in ([], ["configs/kept.yaml"]):
        result = desk("cache", "prune", *arguments)
        assert result.code == 0 and str(other) in result.out and str(kept) not in result.out
        assert "no config has this network, arithmetic, augmentation and stored form" in result.out
        assert "nothing was removed; --yes removes these 1 folders" in result.out
        assert contents(desk.path) == before
    result = desk("cache", "prune", "--yes")
    assert result.code == 0 and "removed 1 folders" in result.out
    assert (
        caches(desk) == [kept]
        and contents(kept).items()
        <= {
            str(desk.path.joinpath(name).relative_to(kept)): data
            for name, data in before.items()
            if name.startswith(str(kept.relative_to(desk.path)))
        }.items()
    )
    assert f"every cache in {desk.path / 'cache'} is some config's" in desk("cache", "prune", "--yes").out


@pytest.mark.parametrize(
    "changes",
    [
        ["seed=5", "schedule.epochs=9", "data.samples=50", "losses.kd.temperature=2.0"],
        ["teacher.cache={}"],
        ["teacher.cache.fill=true"],
    ],
)
def test_prune_keeps_what_may_be_of_use(desk, made, changes):
    desk.write("kept.yaml", desk("show", made, *changes, "--no-origin").out)
    assert "is some config's" in desk("cache", "prune", "kept.yaml", "--yes").out
    assert len(caches(desk)) == 1


@pytest.mark.parametrize("path", ["cache/mine", "{here}/cache/mine", "~/cache/mine", "file://{here}/cache/mine"])
def test_prune_keeps_what_a_config_names(desk, made, path, monkeypatch):
    """By its path, whatever is in it by now."""
    monkeypatch.setenv("HOME", str(desk.path))
    path = path.format(here=desk.path)
    caches(desk)[0].rename(desk.path / "cache/mine")
    value = yaml.safe_load(desk.path.joinpath(made).read_text())
    value["teacher"]["cache"] = {"path": path, "dtype": "bf16"}
    desk.write("kept.yaml", yaml.safe_dump(value))
    assert "is some config's" in desk("cache", "prune", "kept.yaml", "--yes").out
    assert len(caches(desk)) == 1


def test_prune_without_configs(desk, made):
    assert "there is no config to keep caches for" in desk.refused("cache", "prune", "--yes")
    assert len(caches(desk)) == 1


def test_prune_takes_copies_of_stores_too(desk, config):
    where = f"memory://{desk.path.name}/cache"
    assert desk("precompute", config, f"teacher.cache.path={where}").code == 0
    assert desk("train", config, f"teacher.cache.path={where}").code == 0
    assert list(desk.path.glob("cache/mirror/*/**/*.safetensors"))
    result = desk("cache", "prune", config, "--yes")
    assert "copies of remote shards, which are fetched again when they are needed" in result.out
    assert not list(desk.path.glob("cache/mirror/*"))


def test_prune_removes_nothing_where_a_config_cannot_be_read(desk, made):
    desk("precompute", made)
    configs = desk.path / "configs"
    configs.mkdir(exist_ok=True)
    (configs / "broken.yaml").write_text("name: [")
    assert "broken.yaml refers to is not known, so nothing is removed" in desk.refused(
        "cache", "prune", "--yes", code=2
    )
    assert caches(desk)
