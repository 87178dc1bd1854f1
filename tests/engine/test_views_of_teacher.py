"""A view that the teacher alone sees (`Requires(student_views=False)`)."""

import math

import pytest
import torch
from kdray_plugins.kd import ViewKD
from safetensors.torch import load_file

from kdray.config.load import load_config
from kdray.distiller import Outputs
from kdray.errors import ConfigError

CROPS = [{"crop": {"padding": 2}}]


@pytest.fixture
def train(lab, teacher_weights):
    def run(name, loss, cache=None, **data):
        teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights, "cache": cache}
        made = lab.run(name, data=data, teacher=teacher, losses={loss: {}})
        return load_file(made.path / "student.safetensors"), made.rows("epoch")[-1]

    return run


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_student_does_not_see_it(train):
    """Where both views are the picture itself, all is as without one: batch statistics of the student, too."""
    plain, _ = train("plain", "kd", augment=[])
    other, _ = train("other", "viewkd", augment=[], extra_views={"teacher": {"augment": []}})
    assert same(plain, other)


def test_the_teacher_sees_it(train):
    """Fixed and consistent teachers give other students; a cache serves the one as the live teacher does."""
    fixed = {"augment": CROPS, "extra_views": {"teacher": {"augment": []}}}
    consistent, _ = train("consistent", "kd", augment=CROPS)
    live, told = train("live", "viewkd", **fixed)
    assert not same(consistent, live)
    cache = {"path": "answers", "fill": True, "dtype": "fp32"}
    cached, told_too = train("cached", "viewkd", cache, **fixed)
    assert same(live, cached) and told["loss"] == told_too["loss"]


def test_what_the_view_is_must_be_said(lab):
    teacher = {"model": "convnet", "checkpoint": "x"}
    with pytest.raises(ConfigError, match="its view 'teacher', and the config does not say what that is"):
        load_config(lab.config("none", teacher=teacher, losses={"viewkd": {}}), registry=lab.registry)


def test_the_loss_in_plain_loops():
    generator, temperature = torch.Generator().manual_seed(0), 3.0
    student, answer, fixed = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    loss = ViewKD(ViewKD.Options(temperature=temperature), None)
    teacher = Outputs(logits=answer, views={"teacher": Outputs(logits=fixed)})
    found = loss(Outputs(logits=student), teacher, None, None)
    total = 0.0
    for z_s, z_t in zip(student.tolist(), fixed.tolist()):
        p_s, p_t = ([math.exp(z / temperature) for z in row] for row in (z_s, z_t))
        total += sum(t / sum(p_t) * math.log((t / sum(p_t)) / (s / sum(p_s))) for s, t in zip(p_s, p_t))
    assert float(found) == pytest.approx(temperature**2 * total / 4)
