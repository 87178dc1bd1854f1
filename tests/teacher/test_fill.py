"""A run that fills a cache."""

import pytest

from kdray.errors import MismatchError
from tests.teacher.cache_lab import EXACT, assert_same_run

DATA = {"samples": 70, "augment": [{"crop": {"padding": 1}}]}
SMALL = {"schedule": {"epochs": 4}, "engine": {"log_every": 1}, "checkpoint": {"every_steps": 2, "keep": 99}}
CRD = {"dim": 8, "negatives": {"kind": "bank", "count": 32}}
STRONG = {"strong": {"augment": [{"crop": {"padding": 2}}, {"cutout": {"size": 3}}]}}
KD_CRD = {**SMALL, "data": DATA, "losses": {"ce": {}, "kd": {}, "crd": CRD}}
CASES = {
    "by picture": KD_CRD,
    "by view": {**KD_CRD, "data": {**DATA, "augment": [{"random_resized_crop": {"size": 8}}], "views": 2}},
    "further view": {**SMALL, "data": {**DATA, "extra_views": STRONG}, "losses": {"ce": {}, "crld": {}}},
}
FILL = {**EXACT, "fill": True}


@pytest.mark.parametrize("name", CASES)
def test_filling_is_the_live_run_and_reading_is_filling(lab, teacher, asked, name):
    live = lab.run("live", **CASES[name], teacher=teacher)
    forwards = sum(asked)
    asked.clear()
    assert_same_run(lab.run("filling", **CASES[name], teacher={**teacher, "cache": FILL}), live)
    assert sum(asked) < forwards  # epochs show some pictures again
    asked.clear()
    assert_same_run(lab.run("reading", **CASES[name], teacher={**teacher, "cache": EXACT}), live)
    assert sum(asked) == 8 * (1 + len(CASES[name]["data"].get("extra_views", {})))  # the spot checks
    (row, *_) = lab.precompute("complete", **CASES[name], teacher={**teacher, "cache": EXACT})
    assert row["missing_before"] == 0


def test_what_a_run_asks_is_what_was_not_stored(lab, teacher, asked):
    """To the picture: 360 of the test set, and each key once."""
    lab.run("filling", **KD_CRD, teacher={**teacher, "cache": FILL})
    (row,) = lab.precompute("complete", **KD_CRD, teacher={**teacher, "cache": EXACT})
    assert sum(asked) == 360 + row["needed"]
    rows = [shard.rows for shard in lab.cache.shards("logits")]
    assert sum(rows) == row["needed"]  # nothing is stored twice


def test_another_seed_finds_most_of_its_answers(lab, teacher, asked):
    """All samples, or a seed would train on others."""
    config = {**KD_CRD, "data": {**DATA, "samples": None, "batch_size": 479}, "checkpoint": {}}
    config["teacher"] = {**teacher, "cache": FILL}
    lab.run("first", **config)
    first, epochs = sum(asked) - 360, 4
    asked.clear()
    lab.run("second", **config, seed=1)
    second = sum(asked)  # its accuracy on the test set is known
    # Of 9 pictures, 4 epochs meet 9 (1 − (8/9)^4) on average; the second seed misses what neither of 4 + 4 has met.
    met = [9 * (1 - (8 / 9) ** views) * 1437 for views in (epochs, 2 * epochs)]
    assert first == pytest.approx(met[0], rel=0.02) and second == pytest.approx(met[1] - met[0], rel=0.03)
    assert second < 0.7 * first < first < epochs * 1437


@pytest.mark.parametrize("form", [{"dtype": "fp16"}, {"dtype": "bf16"}, {"dtype": "fp16", "top_k": 3}])
def test_filled_answers_are_heard_as_they_are_stored(lab, teacher, form):
    """The run that fills, one that reads, and one from `kdray precompute`."""
    cache = {"path": "cache/here", **form}
    filling = lab.run("filling", **KD_CRD, teacher={**teacher, "cache": {**cache, "fill": True}})
    assert_same_run(lab.run("reading", **KD_CRD, teacher={**teacher, "cache": cache}), filling)
    cache["path"] = "cache/made"
    lab.precompute("made", **KD_CRD, teacher={**teacher, "cache": cache})
    assert_same_run(lab.run("precomputed", **KD_CRD, teacher={**teacher, "cache": cache}), filling)


@pytest.mark.parametrize("step", [2, 3, 8])
def test_a_filling_run_that_was_broken_off_goes_on(lab, teacher, asked, step):
    """With the answers that it had stored; with none of them, where somebody has removed the cache; and then the cache
    is whole again."""
    teacher["cache"] = FILL
    whole = lab.run("whole", **KD_CRD, teacher=teacher)
    asked.clear()
    assert_same_run(lab.broken_off(whole, step), whole)
    assert sum(asked) == 0
    for file in lab.shards():
        file.unlink()
    (lab.path / "cache/here/manifest.json").unlink()
    again = lab.broken_off(whole, step, "again")
    assert_same_run(again, whole)
    assert sum(asked) > 0
    assert lab.cache.manifest().accuracy.items() <= whole.rows("teacher")[0].items()


def test_a_run_that_dies_keeps_what_it_had_stored(lab, teacher, asked, monkeypatch):
    """Answers are written before the checkpoint after which they are not asked for again."""
    from kdray.engine import checkpoint

    teacher["cache"], save, saved = FILL, checkpoint.save, []

    def die(*arguments):
        saved.append(sum(shard.rows for shard in lab.cache.shards("logits")))
        if len(saved) == 2:
            raise KeyboardInterrupt
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", die)
    with pytest.raises(KeyboardInterrupt):
        lab.run("dying", **KD_CRD, teacher=teacher)
    stored = sum(shard.rows for shard in lab.cache.shards("logits"))
    assert saved[0] >= 64 and saved[1] >= 70 and stored >= saved[1]  # two batches of 32; the epoch's end
    monkeypatch.setattr(checkpoint, "save", save)
    asked.clear()
    whole = lab.run("whole", **KD_CRD, teacher=teacher)
    (row,) = lab.precompute("complete", **KD_CRD, teacher={**teacher, "cache": EXACT})
    assert sum(asked) == row["needed"] - stored
    assert_same_run(lab.resume("dying"), whole)


def test_precompute_completes_what_a_run_began(lab, teacher):
    lab.run("short", **{**KD_CRD, "schedule": {"epochs": 2}}, teacher={**teacher, "cache": FILL})
    message = lab.refused(MismatchError, "long", **KD_CRD, teacher={**teacher, "cache": EXACT})
    assert "is not complete" in message
    (row,) = lab.precompute("complete", **KD_CRD, teacher={**teacher, "cache": EXACT})
    assert 0 < row["missing_before"] == row["computed"] < row["needed"]
    live = lab.run("live", **KD_CRD, teacher=teacher)
    assert_same_run(lab.run("long", **KD_CRD, teacher={**teacher, "cache": EXACT}), live)


def test_a_cache_of_something_else_is_not_filled(lab, teacher):
    lab.run("fp32", **KD_CRD, teacher={**teacher, "cache": FILL})
    before = lab.contents()
    message = lab.refused(MismatchError, "fp16", **KD_CRD, teacher={**teacher, "cache": {**FILL, "dtype": "fp16"}})
    assert "dtype: the cache has fp32; asked for is fp16" in message
    assert lab.contents() == before


def test_answers_without_a_manifest_are_nobodys(lab, teacher):
    """Another teacher's run must not take them for its own."""
    lab.run("first", **KD_CRD, teacher={**teacher, "cache": FILL})
    (lab.path / "cache/here/manifest.json").unlink()
    for adopt in (lab.run, lab.precompute):
        with pytest.raises(
            MismatchError, match=r"has answers, and no manifest\.json that says of what.*remove the fol"
        ):
            adopt(adopt.__name__, **KD_CRD, teacher={**teacher, "cache": FILL})
    assert not lab.path.joinpath("cache/here/manifest.json").exists()


def test_a_damaged_answer_stops_a_filling_run_too(lab, teacher):
    lab.run("first", **KD_CRD, teacher={**teacher, "cache": FILL})
    shard = lab.shards()[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MismatchError, match=f"{shard.name} is damaged"):
        lab.run("second", **KD_CRD, teacher={**teacher, "cache": FILL})
