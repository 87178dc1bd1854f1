"""Losses that do not fit the teachers and the views of their config, told by plugins and config alone."""

import pytest

NAMED = """
name: test
data: {name: digits, batch_size: 64}
teachers:
  big: {model: wrn_40_2, checkpoint: big.pt}
  small: {model: wrn_16_2, checkpoint: small.pt}
student: {model: wrn_16_2}
losses:
  kd: {teacher: average}
  ce:
    weight: 1.0
optimizer: {name: sgd, lr: 0.05}
schedule: {epochs: 1}
"""
VIEWS = "data.extra_views={strong: {augment: [flip]}}"


def test_a_loss_without_a_teacher(errors, valid):
    needs = "this loss needs a teacher, and the config names none. Add a `teacher:` section, or remove the loss."
    assert errors(valid, "teacher=null", "seed=-1") == [
        f"c.yaml:9:3: losses.kd: {needs}",
        f"c.yaml:10:3: losses.crd: {needs}",
        "command line: seed: must be at least 0, not -1",
    ]


def test_a_teacher_that_no_loss_looks_at(load, errors, valid):
    (line,) = errors(valid, "losses.kd=null", "losses.crd=null")
    assert line.startswith("c.yaml:3:1: teacher: none of the losses (ce) looks at this teacher.")
    load(valid, "losses.kd=null", "losses.crd=null", "teacher=null")
    (line,) = errors(NAMED, "losses.kd.teacher=big")
    assert line.startswith("c.yaml:6:3: teachers.small: none of the losses (kd, ce) looks at this teacher.")


def test_a_teacher_that_a_misspelt_loss_may_look_at(errors, valid):
    assert len(errors(valid, "losses.kd=null", "losses.crd=null", "losses.kdd={}")) == 1
    assert len(errors(NAMED, "losses.kd.teacher=bigg")) == 1


def test_which_of_several_teachers(load, errors):
    load(NAMED)
    assert errors(NAMED, "losses.kd.teacher=null") == [
        "c.yaml:9:3: losses.kd: which teacher? Add `teacher:` to it, one of big, small, or `average`."
    ]
    assert errors(NAMED, "losses.ce.teacher=big") == [
        "command line: losses.ce.teacher: this loss looks at no teacher: remove the key."
    ]
    assert errors(NAMED, "losses.crd={}")[0].endswith("one of big, small.")
    (line,) = errors(NAMED, "losses.crd={teacher: average}")
    assert "losses.crd.teacher: the average of teachers has logits only, and this loss reads embedding." in line


def test_views(load, errors, valid):
    load(valid, "losses.maps={}", VIEWS)
    assert errors(valid, VIEWS) == [
        "command line: data.extra_views.strong: no loss reads this view: remove it, or add a loss that does."
    ]
    (line,) = errors(valid, "losses.maps={}")
    assert "losses.maps: it compares the picture with its view 'strong', and the config does not say" in line


@pytest.mark.parametrize("section", ["teacher", "teachers.big"])
def test_a_cache_that_cannot_serve_a_loss(load, errors, valid, section):
    text = valid if section == "teacher" else NAMED
    overrides = [VIEWS, "losses.maps={}" if section == "teacher" else "losses.maps={teacher: big}"]
    (line,) = errors(text, *overrides, f"{section}.cache={{}}")
    assert f"{section}.cache: a cache holds logits and embedding, and losses.maps reads its features." in line
    load(text, *overrides, f"{section}.cache={{fallback: live}}")
    load(text, f"{section}.cache={{}}")
