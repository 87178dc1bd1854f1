"""What a student is trained on: classes left out, and wrong labels."""

import pytest
import torch
from pydantic import ValidationError

from kdray.config.load import digest, load_config
from kdray.errors import ConfigError


def test_a_class_is_left_out_of_training_alone(load):
    whole, data = load(name="digits", validation=0.2), load(name="digits", validation=0.2, leave_out=[3, 7])
    assert data.train.labels.bincount(minlength=10)[[3, 7]].tolist() == [0, 0]
    kept = ~torch.isin(whole.train.labels, torch.tensor([3, 7]))
    assert torch.equal(data.train.ids, whole.train.ids[kept])
    for split in ("validation", "test"):
        assert torch.equal(getattr(data, split).ids, getattr(whole, split).ids)
    assert data.num_classes == 10 and data.fingerprint() == whole.fingerprint()
    few = load(name="digits", leave_out=[3, 7], samples=16).train.labels
    assert few.bincount(minlength=10).tolist() == [2, 2, 2, 0, 2, 2, 2, 0, 2, 2]


def test_labels_are_wrong_for_a_share_of_the_training_samples(load):
    clean = load(name="digits", validation=0.2)
    data, again = (load(name="digits", validation=0.2, label_noise=0.4) for _ in range(2))
    wrong = data.train.labels != clean.train.labels
    assert 0.36 < wrong.float().mean() < 0.44
    assert torch.equal(data.train.labels, again.train.labels)
    # Each other class is as likely.
    steps = ((data.train.labels - clean.train.labels) % 10)[wrong].bincount(minlength=10)
    assert steps[0] == 0 and steps[1:].min() > 0.6 * wrong.sum() / 9
    for split in ("validation", "test"):
        assert torch.equal(getattr(data, split).labels, getattr(clean, split).labels)
    assert data.fingerprint() == clean.fingerprint()
    assert not torch.equal(load(name="digits", validation=0.2, label_noise=0.4, seed=1).train.told, data.train.told)


def test_a_sample_keeps_its_wrong_label_whoever_else_is_there(load):
    all_of_them, some = (load(name="digits", label_noise=0.3, **more).train for more in ({}, {"samples": 100}))
    assert torch.equal(all_of_them.labels_of(some.ids), some.labels)
    assert (some.labels != some.source.labels[some.ids]).any()


def test_a_mixed_picture_has_the_class_that_its_partner_is_told(load):
    data = load(name="digits", label_noise=0.5, mix="mixup")
    ids = data.train.ids[:200]
    partner = data.mix.draw(ids, 0, (8, 8)).partner
    assert torch.equal(data.mix.labels(ids, 0, (8, 8))[0], data.train.told[partner])


@pytest.mark.parametrize(
    "section, message",
    [
        ({"leave_out": [10]}, "10 is no class of digits; they are 0 … 9"),
        ({"leave_out": list(range(10))}, "all classes of digits: nothing remains"),
        ({"leave_out": [1], "samples": 1400}, r"has 1291 without the classes \[1\]"),
    ],
)
def test_nonsense_of_the_data(load, section, message):
    with pytest.raises(ConfigError, match=message):
        load(name="digits", **section)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"leave_out": [-1]}, "greater than or equal to 0"),
        ({"leave_out": [1, 1]}, "names a class twice"),
        ({"label_noise": 1.0}, "less than 1"),
        ({"label_noise": -0.1}, "greater than or equal to 0"),
        ({"leave_out": [1], "label_noise": 0.1}, "may name a class that is left out"),
    ],
)
def test_nonsense_of_the_config(load, section, message):
    with pytest.raises(ValidationError, match=message):
        load(name="digits", **section)


def test_a_run_from_before_there_were_these_has_its_digest(lab):
    def found(*overrides):
        return digest(load_config(lab.config("one"), overrides, registry=lab.registry).config)

    assert found("data.leave_out=[]", "data.label_noise=0.0") == found()
    assert len({found(), found("data.leave_out=[1]"), found("data.label_noise=0.1")}) == 3


@pytest.mark.parametrize("section", [{"leave_out": [3]}, {"label_noise": 0.4}])
def test_the_answers_of_a_teacher_serve_all_the_same(lab, teacher_weights, section):
    """They depend on pictures alone, and a run from the cache sees the same numbers as one with the live teacher."""
    folder = str(lab.path / "answers")

    def run(name, cache, **data):
        teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights, "cache": cache}
        made = lab.run(name, data={"samples": 60, **data}, teacher=teacher, losses={"ce": {}, "kd": {}})
        return made.rows("epoch")[-1]

    run("fills", {"path": folder, "fill": True, "dtype": "fp32"})
    cached = run("cached", {"path": folder, "fill": True, "dtype": "fp32"}, **section)
    live = run("live", None, **section)
    assert (cached["loss"], cached["test"]) == (live["loss"], live["test"])
