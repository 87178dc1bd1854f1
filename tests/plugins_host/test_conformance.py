"""The conformance kit: all first-party distillers pass, and every fault is found by the check that is there for it."""

import json

import broken_distillers as broken
import pytest

from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.testing import CHECKS, check_distiller, examine
from kdray.testing.workers import workers


@pytest.mark.parametrize("name", Registry.default().distillers)
def test_first_party(name):
    check_distiller(name)


def queue(**more):
    return {"negatives": {"kind": "queue", "count": 20, **more}}


@pytest.mark.parametrize(
    "name, options",
    [
        ("ce", {"label_smoothing": 0.1}),
        ("crd", {"negatives": {"kind": "bank", "count": 16, "mode": "relax"}}),
        ("crd", {"negatives": {"kind": "all"}}),
        ("crd", {"negatives": {"kind": "batch"}}),
        ("crd", {"negatives": {"kind": "all"}, "positives": "class", "objective": "infonce"}),
        ("crd", queue()),
        ("crd", {**queue(other="sample"), "objective": "infonce"}),
        ("crd", {**queue(), "positives": "class", "slow": 0.9}),
        ("rrd", {"teacher_head": "none"}),
        ("compress", {"queues": 1}),
        ("cc", {"form": "paper"}),
        ("hint", {"init_epochs": 2, "regressor": "conv_relu"}),
        ("ft", {"factors": "maps"}),
        ("sp", {"maps": [-2, -1]}),
        ("dkd", {"standardise": True}),
        ("ttm", {"weighted": True}),
        ("sdd", {"base": "dkd"}),
        ("sdd", {"base": "nkd"}),
        ("ikl", {"prior": "sample"}),
        ("catkd", {"normalise": False}),
        ("mgd", {"mask": "positions"}),
        ("dml", {"peers": 2}),
    ],
)
def test_first_party_with_other_options(name, options):
    check_distiller(name, options)


@pytest.mark.parametrize("check", CHECKS)
def test_the_good_one_passes(check):
    check_distiller(broken.Good, checks=[check])


FAULTS = {
    "options": [(broken.NeedsOption, "no default: size")],
    "fits": [
        (broken.NoScalar, "NoScalar returned "),
        (broken.NamesChange, "names of the terms change"),
        (broken.FitsNothing, "there is no network like that"),
        (broken.ReadsMore, "'NoneType' object has no attribute 'mean'"),
    ],
    "finite": [(broken.NoNumber, "not finite with large activations of a narrower student: the term ce")],
    "gradients": [
        (broken.Detached, "no gradient reaches the student's embedding, logits"),
        (broken.Unread, "the student's features takes no gradient and does not matter"),
        (broken.IdleParameter, "no gradient reaches the parameters idle.bias, idle.weight"),
    ],
    "teacher": [
        (broken.TrainsTeacher, "the parameter borrowed is the teacher's head"),
        (broken.WritesTeacher, "it writes into teacher.logits"),
    ],
    "resume": [
        (broken.UnsavedState, "hint (by"),
        (broken.SharedState, "its state cannot be saved"),
    ],
    "seed": [(broken.GlobalRandom, "it draws from a global random generator")],
    "two_workers": [
        (broken.LocalStatistic, "the term relation"),
        (broken.LocalNoise, "random numbers drawn for the global batch"),
        (broken.LocalBuffer, "the buffer mean"),
        (broken.UnevenGather, "every worker must call step.gather equally often"),
    ],
    "precision": [(broken.Coarse, "with float32 activations")],
    "scope": [
        (broken.SampleScope, "say 'batch'"),
        (broken.BatchScope, "say 'sample'"),
    ],
    "cache": [(broken.PreciseTeacher, "with a teacher in float16")],
    "scheduled": [(broken.NotScheduled, "read self.options.temperature in forward")],
    "mixed": [
        (broken.OneOfTwo, "changes where batch.target and batch.partner change places"),
        (broken.BothAlways, "with a share of 1 is not that of unmixed ones"),
    ],
    "last_batch": [(broken.NoNumberInSmallBatch, "not finite with a batch of two or three rows: pairs")],
    "stages": [(broken.IdleStage, "stage 'idle' changes nothing")],
    "deployed": [(broken.DeploysNonsense, "expected logits (4, 5)")],
}


def test_every_check_has_a_fault():
    assert list(FAULTS) == list(CHECKS)


@pytest.mark.parametrize(
    "check, cls, message", [pytest.param(c, *f, id=f[0].__name__) for c, found in FAULTS.items() for f in found]
)
def test_a_fault_is_found(check, cls, message):
    with pytest.raises(AssertionError) as raised:
        check_distiller(cls, checks=[check])
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{cls.__name__} does not keep the contract\n{check}: ")


def test_workers_go_on_after_a_failure():
    (verdict,) = examine(broken.NoScalar, checks=["two_workers"])
    assert not verdict.passed
    processes = workers().processes
    check_distiller("kd", checks=["two_workers"])
    check_distiller("crd", {"negatives": {"kind": "queue", "count": 20}}, checks=["two_workers", "scope"])
    assert workers().processes == processes or not processes


def test_an_unknown_check_is_refused():
    with pytest.raises(ConfigError, match=r"no check .gradient.\. Did you mean .gradients."):
        check_distiller("kd", checks=["gradient"])


def test_a_remark_tells_what_was_found():
    remarks = {verdict.check: verdict.remark for verdict in examine("crd")}
    assert remarks["cache"] == "yes: embedding"
    assert remarks["scope"] == "batch"
    assert json.dumps(remarks)


def test_what_is_wrong_everywhere_is_told_once():
    with pytest.raises(AssertionError) as caught:
        check_distiller(broken.NoScalar, checks=["fits", "finite", "resume"])
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 1 and lines[0].startswith("fits, finite, resume: NoScalar returned ")
