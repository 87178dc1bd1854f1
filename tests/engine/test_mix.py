"""Runs on mixed pictures: what losses get, which are refused and when, and that a restart changes nothing."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.data.feed import Feed
from kdray.data.views import batches
from kdray.distiller import Batch, Setup, Shapes
from kdray.engine.build import build
from kdray.engine.checkpoint import checkpoints
from kdray.engine.labels import batch_for, setup_for
from kdray.errors import ConfigError, MismatchError
from kdray.launch.experiment import Experiment
from kdray.launch.precompute import Precompute
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.teacher.inspect import unreferenced

pytestmark = pytest.mark.usefixtures("with_stages")
MIXED = {"data": {"samples": 96, "mix": {"mixup": {"alpha": 0.4}}}, "engine": {"log_every": 1}}


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_the_first_loss_is_that_of_the_mixed_pictures(lab, mix):
    """Of the untrained student, by hand: pictures, partners and shares belong together."""
    run = lab.run("first", data={"samples": 96, "mix": mix}, engine={"log_every": 1}, schedule={"epochs": 1})
    config = load_config(run.config_file, registry=lab.registry).config
    parts = build(config, lab.registry, lab.path, {}, torch.device("cpu"))
    split = parts.data.train
    (rows, *_) = batches(len(split), 32, 0, 0, "keep")
    (x,) = Feed(split, parts.data.augment, 1, torch.device("cpu")).batches([rows], 0)
    drawn = parts.data.mix.draw(split.ids[rows], 0, x.shape[-2:])
    z = parts.student.train()(parts.normalize(x, torch.float32)).logits
    q = torch.zeros_like(z)
    for row, (i, j, share) in enumerate(zip(split.ids[rows], drawn.partner, drawn.share)):
        q[row, split.source.labels[i]] += share
        q[row, split.source.labels[j]] += 1 - share
    expected = -(q * F.log_softmax(z, dim=1)).sum(dim=1).mean().item()
    assert run.rows("step")[0]["terms"]["ce"] == pytest.approx(expected, rel=1e-5)
    assert (q.max(dim=1).values < 0.95).float().mean() > 0.05  # they are mixed


def test_distillation_on_mixed_pictures(lab, teacher):
    """Losses that read no classes need nothing; the teacher sees the student's picture."""
    data = {"samples": 96, "mix": "cutmix", "augment": [], "extra_views": {}}
    run = lab.run("kd", data=data, teacher=teacher, losses={"ce": {"weight": 0.1}, "kd": {}, "rkd": {}})
    assert set(run.rows("epoch")[-1]["terms"]) >= {"ce", "kd"}
    assert "cutmix (alpha 1.0, p 1.0)" in (run.path / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_interrupted_run_sees_the_same_pictures(lab, in_memory):
    data = {"samples": 96, "mix": "mixup", "in_memory": in_memory}
    whole = lab.run("whole", data=data, checkpoint={"keep": 99, "every_steps": 2})
    broken = RunFolder(whole.path.with_name("broken"))
    shutil.copytree(whole.path, broken.path)
    for path in checkpoints(broken.path / "checkpoints"):
        if path.name > "step-000000002":
            shutil.rmtree(path)
    for file in ("student.safetensors", "best.safetensors", "summary.json"):
        (broken.path / file).unlink(missing_ok=True)
    broken.set_status("interrupted")
    Experiment(lab.registry, find_project(lab.path), Console(), "test").resume(broken)
    ours, theirs = (load_file(run.path / "student.safetensors") for run in (whole, broken))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "losses, what",
    [
        ({"ce": {}, "dkd": {}}, r"losses\.dkd reads .*batch\.target"),
        ({"ce": {}, "mine": {"use": "nkd"}}, r"losses\.mine reads .*batch\.target"),
        ({"ce": {}, "crd": {}}, r"losses\.crd reads .*setup\.labels"),
        ({"ce": {}, "queue": {"use": "crd", "negatives": {"kind": "queue"}}}, r"losses\.queue reads .*batch\.target"),
        ({"ce": {}, "staged": {}}, r"losses\.staged reads .*batch\.target"),  # in a stage
        ({"ce": {}, "ikl": {}}, r"losses\.ikl reads .*batch\.target"),
    ],
)
def test_a_loss_of_one_class_a_picture_is_refused_before_the_run(lab, teacher, losses, what):
    with pytest.raises(ConfigError, match=f"{what}.*Remove the loss, or data.mix.*mixes = True"):
        lab.run("refused", **MIXED, teacher=teacher, losses=losses)
    assert not (lab.path / "runs" / "refused").exists()


def test_the_first_step_refuses_what_was_not_found_before(lab, teacher, monkeypatch):
    """A loss may fit none of the networks on which it is tried."""
    monkeypatch.setattr("kdray.launch.experiment.check_mixed", lambda *given: None)
    with pytest.raises(ConfigError, match=r"losses\.dkd reads the class of a picture \(batch\.target\)"):
        lab.run("late", **MIXED, teacher=teacher, losses={"ce": {}, "dkd": {}})


def test_after_backward_is_guarded_too(lab, teacher, monkeypatch):
    monkeypatch.setattr("kdray.launch.experiment.check_mixed", lambda *given: None)
    cls = lab.registry.get("distillers", "kd").cls
    monkeypatch.setattr(cls, "after_backward", lambda self, batch, step: batch.target.sum(), raising=False)
    with pytest.raises(ConfigError, match=r"losses\.kd reads the class of a picture"):
        lab.run("after", **MIXED, teacher=teacher, losses={"ce": {}, "kd": {}})


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_cache_holds_the_answers_to_mixed_pictures(lab, teacher, mix):
    """A run from it ends where one with the live teacher does; other mixing is other pictures."""
    teacher = {**teacher, "cache": {"dtype": "fp32"}}
    base = {"data": {"samples": 96, "mix": mix}, "losses": {"ce": {}, "kd": {}}}
    live = lab.run("live", "teacher.cache=null", teacher=teacher, **base)
    config = load_config(lab.config("cached", teacher=teacher, **base), registry=lab.registry).config
    project = find_project(lab.path)
    (made,) = Precompute(lab.registry, project, Console(), "").run(config)
    assert made["needed"] == made["computed"] == 2 * 96  # kept by view, though crops are few
    cached = lab.run("cached", teacher=teacher, **base)
    ours, theirs = (load_file(run.path / "student.safetensors") for run in (live, cached))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    here = {"cache": {"dtype": "fp32", "path": made["path"]}}
    for other in ({"mix": {mix: {"alpha": 0.5}}}, {"mix": None}, {"samples": 80}):
        with pytest.raises(MismatchError, match=r"augmentation: the cache has.*(mixup|cutmix) \{alpha: 1.0"):
            lab.run("other", teacher={**teacher, **here}, losses=base["losses"], data={**base["data"], **other})
    assert not list(unreferenced(project.cache, [config], lab.registry))
    unmixed = load_config(lab.path / "cached.yaml", ["data.mix=null"], registry=lab.registry).config
    assert len(list(unreferenced(project.cache, [unmixed], lab.registry))) == 1


class Says:
    mixes = True


class Silent:
    mixes = False


def test_who_gets_which_batch():
    index, share = torch.arange(3), torch.full((3,), 0.5)
    plain = Batch(index, index + 1, epoch=2, offset=1, size=3)
    mixed = replace(plain, partner=index, share=share)
    assert batch_for("x", Silent(), plain) is plain and batch_for("x", Says(), mixed) is mixed
    seen = batch_for("x", Silent(), mixed)
    assert isinstance(seen, Batch) and seen.share is share and (seen.epoch, seen.offset, seen.size) == (2, 1, 3)
    with pytest.raises(ConfigError, match=r"losses\.x reads"):
        _ = seen.target
    setup = Setup(Shapes(logits=(4,)), None, 4, 3, index, torch.Generator())
    assert setup_for("x", Says, setup) is setup
    seen = setup_for("x", Silent, setup)
    assert seen.num_classes == 4 and seen.student is setup.student
    with pytest.raises(ConfigError, match=r"losses\.x reads"):
        _ = seen.labels
