"""`kdray compare`: what differs, and the paired test, on copies of a real run whose results are known."""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from kdray.errors import ConfigError
from kdray.run.folder import RunFolder, find_seeds
from kdray.ship.compare import compare
from tests.conftest import Lab


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def real(home) -> RunFolder:
    return home.run("real", run={"dir": str(home.path)}, schedule={"epochs": 1})


@pytest.fixture
def runs(real, tmp_path):
    """Makes a finished run `name` of a seed, with its accuracies and changes to its config."""

    def made(name: str, seed: int, last: float, best: float = 0.9, **changes) -> RunFolder:
        path = tmp_path / name
        shutil.copytree(real.path, path)
        config = yaml.safe_load((path / "config.yaml").read_text())
        for key, value in {"seed": seed, "run.name": path.name, **changes}.items():
            *sections, leaf = key.split(".")
            inner = config
            for section in sections:
                inner = inner[section]
            inner[leaf] = value
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        summary = json.loads((path / "summary.json").read_text())
        summary["last"]["top1"], summary["best"]["test_top1"] = last, best
        (path / "summary.json").write_text(json.dumps(summary))
        return RunFolder(path)

    return made


def beside(home, tmp_path, *names: str) -> dict:
    return compare([(name, find_seeds(name, tmp_path)) for name in names], home.registry)


def test_seeds_are_paired(home, runs, tmp_path):
    """Against the formula; the second side's seeds are named in another order, and one has no partner."""
    a, b = {0: 0.70, 1: 0.80, 2: 0.75, 7: 0.10}, {2: 0.79, 0: 0.71, 1: 0.83}
    for seed, last in a.items():
        runs(f"a-seed{seed}", seed, last)
    for seed, last in b.items():
        runs(f"b{seed}", seed, last, **{"optimizer.lr": 0.1})
    found = beside(home, tmp_path, *(f"a-seed{seed}" for seed in a), *(f"b{seed}" for seed in b))
    assert [side["seeds"] for side in found["sides"]] == [[0, 1, 2, 7], [2, 0, 1]]
    assert found["sides"][0]["label"] == "a" and found["sides"][0]["last"]["values"] == list(a.values())
    test = found["tests"]["last"]
    d = [b[seed] - a[seed] for seed in (0, 1, 2)]
    mean = sum(d) / 3
    error = math.sqrt(sum((x - mean) ** 2 for x in d) / 2) / math.sqrt(3)
    t = mean / error
    assert test["seeds"] == [0, 1, 2] and test["difference"]["values"] == pytest.approx(d)
    assert test["t"] == pytest.approx(t)
    assert test["p"] == pytest.approx(1 - t / math.sqrt(2 + t * t))  # Student's distribution with 2 degrees of freedom
    half = 4.302652729911275 * error  # its quantile at 0.975
    assert test["interval"] == pytest.approx([mean - half, mean + half]) and test["no_test"] is None
    best = found["tests"]["best"]
    assert best["difference"]["mean"] == 0 and "the same difference" in best["no_test"]
    assert best["p"] is best["t"] is best["interval"] is None


def test_a_name_stands_for_its_seeds(home, runs, tmp_path):
    for name, temperature in (("kd", 0.05), ("kd-hot", 0.1)):
        for seed in (0, 10, 9):
            runs(f"{name}-seed{seed}", seed, 0.5 + seed / 100, **{"optimizer.lr": temperature})
    found = beside(home, tmp_path, "kd", str(tmp_path / "kd-hot"))
    assert [side["label"] for side in found["sides"]] == ["kd", "kd-hot"]
    assert found["sides"][1]["runs"] == ["kd-hot-seed0", "kd-hot-seed9", "kd-hot-seed10"]
    assert found["differences"] == [{"key": "optimizer.lr", "a": 0.05, "b": 0.1}]
    runs("kd", 3, 0.5)  # a run of that very name goes before
    assert beside(home, tmp_path, "kd", "kd-hot")["sides"][0]["runs"] == ["kd"]


def test_two_single_runs(home, runs, tmp_path):
    runs("one", 0, 0.5)
    kd = {"ce": {"weight": 1.0}, "kd": {"weight": 2.0}}
    runs("two", 0, 0.6, losses=kd, teacher={"model": "convnet", "checkpoint": "/none"}, **{"data.samples": None})
    found = beside(home, tmp_path, "one", "two")
    rows = {row["key"]: row for row in found["differences"]}
    assert rows["data.samples"] == {"key": "data.samples", "a": 160, "b": None}
    assert rows["losses.kd.weight"] == {"key": "losses.kd.weight", "b": 2.0}
    assert rows["teacher.checkpoint"] == {"key": "teacher.checkpoint", "b": "/none"}
    sections = [key.split(".")[0] for key in rows]
    assert sections == sorted(sections, key=sections.index)  # what belongs together stands together
    assert (
        not {"teacher", "losses.kd.schedule", "losses.kd.use", "name", "run.name", "losses.ce.weight", "seed"}
        & rows.keys()
    )
    test = found["tests"]["last"]
    assert test["difference"]["mean"] == pytest.approx(0.1) and test["p"] is None
    assert test["no_test"] == "it needs two seeds at least that both sides have; one has seed 0, two has seed 0"


def test_two_seeds_of_one_recipe(home, runs, tmp_path):
    runs("a-seed0", 0, 0.5)
    runs("a-seed1", 1, 0.6)
    found = beside(home, tmp_path, "a-seed0", "a-seed1")
    assert found["differences"] == [{"key": "seed", "a": 0, "b": 1}]
    assert found["tests"]["last"]["difference"] is None and "a-seed1 has seed 1" in found["tests"]["last"]["no_test"]


def test_two_folders(home, runs, tmp_path):
    """The same name in each."""
    for folder in ("x", "y"):
        runs(f"{folder}/kd", 0, 0.5)
    found = beside(home, tmp_path, "x/kd", "y/kd")
    assert [side["label"] for side in found["sides"]] == ["x/kd", "y/kd"]


def test_what_cannot_be_told_is_said(home, runs, tmp_path):
    runs("a", 0, 0.5)
    b = runs("b", 0, 0.5)
    (b.path / "data.json").write_text('{"fingerprint": "other", "recipe": "same"}')
    summary = json.loads((b.path / "summary.json").read_text())
    summary["best"]["split"] = "validation"
    (b.path / "summary.json").write_text(json.dumps(summary))
    first, second = beside(home, tmp_path, "a", "b")["notes"]
    assert "data are others" in first and "validation split" in second


def test_refusals(home, runs, tmp_path):
    runs("a", 0, 0.5)
    b = runs("b", 1, 0.5)
    runs("twin", 0, 0.5)
    runs("other", 0, 0.5, **{"optimizer.lr": 0.2})
    runs("mixed-seed0", 0, 0.5)
    runs("mixed-seed1", 1, 0.5, **{"optimizer.lr": 0.2})
    cases = {
        ("a", "a"): "the run a is named twice",
        ("a", str(tmp_path / "a")): "the run a is named twice",
        ("a", "nothing"): "no run 'nothing'",
        ("a",): "two recipes are compared, and these runs are of 1: a .a.",
        ("a", "b", "mixed"): "a and mixed-seed0 are one recipe with one seed, 0",
        ("a", "twin", "other"): "a and twin are one recipe with one seed, 0",
        ("mixed", "a"): "mixed stands for runs of 2 recipes: mixed-seed0; mixed-seed1",
    }
    for names, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            beside(home, tmp_path, *names)
    (b.path / "status.json").write_text('{"state": "interrupted"}')
    with pytest.raises(ConfigError, match=r"b is not finished .its state: interrupted.*kdray resume b"):
        beside(home, tmp_path, "a", "b")


def test_a_name_with_marks_of_a_pattern(runs, tmp_path):
    runs("a1-seed0", 0, 0.5)
    with pytest.raises(ConfigError, match=r"no run 'a\[1\]'"):
        find_seeds("a[1]", Path(tmp_path))
