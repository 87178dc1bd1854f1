"""First stages, further views, several teachers, options that move, another head: the parts of the contract beyond one
loss on one picture."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.config.schema import ExtraView
from kdray.data.build import load_data
from kdray.engine.build import build
from kdray.engine.checkpoint import checkpoints
from kdray.errors import ConfigError, PluginError
from kdray.launch.experiment import Experiment
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from tests.conftest import in_order

pytestmark = pytest.mark.usefixtures("with_stages")
SMALL = {"data": {"samples": 96}, "schedule": {"epochs": 2}, "engine": {"log_every": 1}}


def states(run):
    """All tensors of each checkpoint, by step."""
    return {
        path.name: {f"{file.stem}.{k}": v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}
        for path in checkpoints(run.path / "checkpoints")
    }


def staged(lab, teacher, name="staged", **more):
    return lab.run(
        name,
        **SMALL,
        teacher=teacher,
        losses={"ce": {}, "staged": {}},
        checkpoint={"keep": 99, "every_steps": 2},
        **more,
    )


def test_each_stage_trains_what_it_names(lab, teacher):
    run = staged(lab, teacher)
    rows = run.rows("stage")
    assert [(row["stage"], row["epoch"], sorted(row["terms"])) for row in rows] == [
        ("staged/hint", 1, ["staged/mse"]),
        ("staged/hint", 2, ["staged/mse"]),
        ("staged/look", 1, []),
    ]
    assert rows[1]["terms"]["staged/mse"] < rows[0]["terms"]["staged/mse"] and rows[0]["lr"] == 0.01
    assert [row["epoch"] for row in run.rows("epoch")] == [1, 2]

    start, hinted, looked, end = (states(run)[f"step-{n:09d}"] for n in (2, 6, 9, 15))

    def moved(a, b, key):
        return not torch.equal(a[key], b[key])

    assert moved(start, hinted, "student.stages.0.conv.weight") and moved(
        start, hinted, "distillers.staged.connector.0.weight"
    )
    for key in ("student.fc.weight", "student.stages.1.conv.weight", "distillers.staged.embed.weight"):
        assert not moved(start, hinted, key), key  # the stage's loss does not reach them
    trained = [key for key in hinted if key.split(".")[-1] in ("weight", "bias", "running_mean")]
    assert not any(moved(hinted, looked, key) for key in trained), "the stage that looks trained something"
    assert moved(looked, end, "student.stages.0.conv.weight") and moved(looked, end, "distillers.staged.embed.weight")
    for key in (k for k in end if "connector" in k):
        assert not moved(looked, end, key), f"{key} moved after its stage"


def test_a_stage_that_looks_sees_every_sample_once(lab, teacher, teacher_weights):
    run = staged(lab, teacher)
    config = load_config(run.config_file, registry=lab.registry).config
    parts = build(config, lab.registry, Path("."), {"teacher": teacher_weights}, torch.device("cpu"))
    split, view = parts.data.train, 0  # the stage's first epoch
    pictures = parts.data.augment(split.source.images[split.ids], split.ids, view)
    embedding = parts.teachers(pictures, {}, ["staged"], {})["staged"].embedding
    found = states(run)["step-000000015"]
    for label in range(10):
        mean = embedding[split.labels == label].mean(0)
        assert_close(found["distillers.staged.means"][label], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [2, 3, 4, 6, 8, 9, 12])
def test_a_run_goes_on_from_any_checkpoint_of_a_stage(lab, teacher, at):
    whole = staged(lab, teacher)
    broken = RunFolder(whole.path.with_name("broken"))
    shutil.copytree(whole.path, broken.path)
    for path in checkpoints(broken.path / "checkpoints"):
        if path.name > f"step-{at:09d}":
            shutil.rmtree(path)
    for file in ("student.safetensors", "best.safetensors", "summary.json"):
        (broken.path / file).unlink(missing_ok=True)
    broken.set_status("interrupted")
    Experiment(lab.registry, find_project(lab.path), Console(), "test").resume(broken)
    assert broken.finished
    a, b = (states(run)["step-000000015"] for run in (whole, broken))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
    told = [
        [(r["kind"], r["step"], r.get("terms")) for r in in_order(run.rows()) if r["kind"] != "resumed"]
        for run in (whole, broken)
    ]
    assert told[0] == told[1]


def test_a_loss_that_ends_with_its_stage_needs_another_beside_it(lab):
    run = lab.run("before", **SMALL, losses={"ce": {}, "only_before": {}})
    assert set(run.rows("epoch")[0]["terms"]) == {"ce"}
    with pytest.raises(ConfigError, match=r"only_before adds nothing to the main loop.*add `ce"):
        lab.run("alone", **SMALL, losses={"only_before": {}})


VIEWS = {"turned": {"of": "base", "augment": [{"flip": {"p": 1.0}}]}, "other": {"augment": [{"crop": {"padding": 2}}]}}


def test_views_are_pictures_of_the_same_samples(lab, teacher):
    data = {**SMALL["data"], "extra_views": VIEWS}
    run = lab.run("views", **{**SMALL, "data": data}, teacher=teacher, losses={"ce": {}, "two_views": {}})
    for row in run.rows("epoch"):
        assert row["terms"]["two_views/is_turned"] == 0, "the turned view is not of the student's own picture"
        assert row["terms"]["two_views/is_other"] > 0.5
        assert row["terms"]["two_views/turned"] > 0
    for views, message in (
        ({}, r"two_views: it compares the picture with its view 'turned'.*extra_views"),
        ({**VIEWS, "idle": {}}, "extra_views.idle: no loss reads this view"),
    ):
        changed = {**SMALL, "data": {**SMALL["data"], "extra_views": views}}
        with pytest.raises(ConfigError, match=message):
            lab.run("wrong", **changed, teacher=teacher, losses={"ce": {}, "two_views": {}})


def test_views_of_the_base_picture_have_numbers_of_their_own(lab):
    config = load_config(lab.config("views"), registry=lab.registry).config
    views = {name: ExtraView(of="base", augment=[{"cutout": {"size": 3}}]) for name in ("one", "two")}
    data = load_data(config.data.model_copy(update={"extra_views": views}), 0, lab.registry, lab.path)
    ids = data.train.ids
    pictures = data.train.source.images[ids]
    base, one, two = (p(pictures, ids, 3) for p in (data.augment, data.views["one"], data.views["two"]))
    assert not torch.equal(one, two)
    assert all(0.5 < (view == base).float().mean() < 1 for view in (one, two))


def test_terms_do_not_come_and_go(lab, teacher):
    with pytest.raises(PluginError, match=r"moody/mse are not there at every step"):
        lab.run("moody", **SMALL, teacher=teacher, losses={"ce": {}, "moody": {}})


def test_two_stages_of_one_name_are_refused_before_the_run(lab):
    with pytest.raises(PluginError, match=r"two stages are called 'norm'"):
        lab.run("twice", **SMALL, losses={"ce": {}, "twice": {}})
    assert not (lab.path / "runs" / "twice").exists()


def test_a_module_of_two_names_is_saved(lab):
    run = lab.run("shared", **SMALL, losses={"ce": {}, "twice": {"repeat": False}})
    state = states(run)["step-000000006"]
    assert torch.equal(state["distillers.twice.a.weight"], state["distillers.twice.both.0.weight"])


def test_several_teachers_and_their_average(lab, teacher):
    other = lab.run(
        "other", data={"samples": 500}, schedule={"epochs": 3}, student={"model": "convnet", "widths": [8, 16]}
    )
    teachers = {
        "big": teacher,
        "small": {"model": "convnet", "widths": [8, 16], "checkpoint": str(other.path / "student.safetensors")},
    }
    kd = {"use": "kd", "temperature": 1.0}
    losses = {"ce": {}, "of_big": {**kd, "teacher": "big"}, "of_small": {**kd, "teacher": "small"}}
    run = lab.run("team", **SMALL, teachers=teachers, losses={**losses, "of_both": {**kd, "teacher": "average"}})
    measured = {row["name"]: row["top1"] for row in run.rows("teacher")}
    assert measured["small"] == other.summary["last"]["top1"]
    assert set(measured) == {"big", "small", "average"} and measured["average"] > measured["small"]
    assert set(run.summary["teachers"]) == set(measured)
    terms = run.rows("epoch")[0]["terms"]
    assert len({terms[k] for k in ("of_big", "of_small", "of_both")}) == 3

    def refused(message, **changes):
        with pytest.raises(ConfigError, match=message):
            lab.run("wrong", **SMALL, **{"teachers": teachers, "losses": losses, **changes})

    refused("losses.kd: which teacher.*big, small, or `average`", losses={"kd": {}})
    refused("no teacher 'bigg'", losses={"kd": {"teacher": "bigg"}})
    refused("logits only, and this loss reads embedding", losses={"crd": {"teacher": "average"}})
    refused("not both", teacher=teacher)
    refused("'average' has another meaning", teachers={"average": teacher, "big": teacher})
    refused(r"teachers.small: none of the losses \(kd\) looks at this teacher", losses={"kd": {"teacher": "big"}})
    refused("ce.teacher: this loss looks at no teacher", losses={**losses, "ce": {"teacher": "big"}})


def test_an_option_moves_over_the_epochs(lab, teacher):
    moves = {"temperature": {"start": 8.0, "warmup": 2, "end": 1.0, "decay": 2}}
    still = {"optimizer": {"lr": 1e-12}, "schedule": {"epochs": 6}, "data": {"samples": 32, "augment": []}}

    def terms(name, **kd):
        rows = lab.run(name, **still, teacher=teacher, losses={"kd": kd}).rows("epoch")
        return [row["terms"]["kd"] for row in rows]

    moving = terms("moving", temperature=4.0, schedule=moves)
    for epoch, temperature in ((0, 8.0), (1, 6.0), (2, 4.0), (3, 4.0), (4, 4.0), (5, 2.5)):
        assert moving[epoch] == pytest.approx(terms(f"still{epoch}", temperature=temperature)[epoch], rel=1e-5)
    with pytest.raises(ConfigError, match=r"schedule.temperature.start: .*greater than 0"):
        terms("wrong", schedule={"temperature": {"start": -1.0, "warmup": 2}})
    with pytest.raises(ConfigError, match="ce has no option 'label_smoothing' that may move"):
        lab.run("wrong", losses={"ce": {"schedule": {"label_smoothing": {"start": 0.5, "warmup": 2}}}})


def test_a_new_head_is_what_is_evaluated_and_exported(lab, teacher, teacher_weights):
    wide = {"student": {"model": "convnet", "widths": [16, 32]}, "optimizer": {"lr": 0.3}}
    settings = {"data": {"samples": 400}, "schedule": {"epochs": 12}, "engine": {"ema": 0.5}, **wide}
    run = lab.run("head", **settings, teacher=teacher, losses={"new_head": {}})
    state = load_file(run.path / "student.safetensors")
    assert_close(state["weight"], load_file(teacher_weights)["fc.weight"])
    # The student's own classifier was never trained.
    assert lab.measured(run)["top1"] == run.summary["last"]["top1"] > 0.2
    both = {"teachers": {"one": teacher, "two": teacher}}
    losses = {"ce": {}, "kd": {"teacher": "two"}, "new_head": {"teacher": "one"}}
    mixed = lab.run("mixed", **SMALL, **both, losses=losses)
    assert lab.measured(mixed)["top1"] == mixed.summary["last"]["top1"]
    with pytest.raises(ConfigError, match=r"new_head and again: .*it can have one"):
        lab.run("two", **settings, teacher=teacher, losses={"new_head": {}, "again": {"use": "new_head"}})
