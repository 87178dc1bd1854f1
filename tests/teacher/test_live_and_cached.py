"""A run from the cache is the run with the live teacher."""

import pytest
import torch

from kdray.registry import Registry
from tests.teacher.cache_lab import EXACT, assert_same_run, distance, terms

# 70 samples in batches of 32: the last of an epoch has 6.
DATA = {"samples": 70, "augment": [{"crop": {"padding": 1}}]}
CRD = {"dim": 8, "negatives": {"kind": "bank", "count": 32}}
SMALL = {"schedule": {"epochs": 4}, "engine": {"log_every": 1}}
KD_CRD = {"data": DATA, "losses": {"ce": {}, "kd": {}, "crd": CRD}}
RESIZED = [{"random_resized_crop": {"size": 8}}, "flip"]
STRONG = {"strong": {"augment": [{"crop": {"padding": 2}}, {"cutout": {"size": 3}}]}}
TURNS = {f"rot{d}": {"of": "base", "augment": [{"rotate": {"degrees": d}}]} for d in (90, 180, 270)}

CASES = {
    "kd and crd": KD_CRD,
    "a last batch of one": {**KD_CRD, "data": {**DATA, "samples": 65}},
    "a further view": {"data": {**DATA, "extra_views": STRONG}, "losses": {"ce": {}, "crld": {}}},
    "turns, and a stage that learns from them": {
        "data": {**DATA, "extra_views": TURNS, "views": 8},
        "losses": {"ce": {}, "kd": {}, "sskd": {"init_epochs": 6}},  # it shows views that the main loop does not
    },
    "the classifier": {"data": DATA, "losses": {"ce": {}, "srrl": {}, "wkd_l": {}}},
    "kept by view": {**KD_CRD, "data": {**DATA, "augment": RESIZED, "views": 2}},
    "mixed pictures": {"data": {**DATA, "mix": "cutmix"}, "losses": {"kd": {}}},
    "streamed": {**KD_CRD, "data": {**DATA, "in_memory": False}},
    "a part for validation": {**KD_CRD, "data": {**DATA, "validation": 0.3}},
    "bf16": {**KD_CRD, "engine": {"log_every": 1, "precision": "bf16"}},
    "fp64, a teacher in fp32": {**KD_CRD, "engine": {"log_every": 1, "precision": "fp64"}},
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_bit_for_bit(lab, teacher, asked, name):
    config = {**SMALL, **CASES[name]}
    if "fp64" in name:
        teacher["precision"] = "fp32"
    live = lab.run("live", **config, teacher=teacher)
    stored = {**config, "teacher": {**teacher, "cache": EXACT}}
    lab.precompute("made", **stored)
    asked.clear()
    assert_same_run(lab.run("cached", **stored), live)
    spots = 8 * (1 + len(config["data"].get("extra_views", {})))
    assert sum(asked) <= spots  # before the run, and never in it


def other_teacher(lab) -> dict:
    student = {"model": "convnet", "widths": [8, 8]}
    run = lab.run("other", data={"samples": 300, "batch_size": 50}, student=student, schedule={"epochs": 2})
    return {**student, "checkpoint": str(run.path / "student.safetensors"), "normalize": {"mean": [0.5], "std": [0.3]}}


def two(one: dict, other: dict, **more) -> dict:
    losses = {"ce": {}, "kd": {"teacher": "average"}, "crd": {**CRD, "teacher": "one"}}
    return {**SMALL, "data": DATA, "losses": losses, "teachers": {"one": one, "two": other}, **more}


@pytest.mark.parametrize("cached", [("one",), ("two",), ("one", "two")])
def test_two_teachers_and_their_average(lab, teacher, cached):
    teachers = {"one": teacher, "two": other_teacher(lab)}
    live = lab.run("live", **two(*teachers.values()))
    for name in cached:
        teachers[name] = {**teachers[name], "cache": {"dtype": "fp32"}}
    config = two(*teachers.values())
    made = lab.precompute("made", **config)
    assert [(row["teacher"], row["outputs"]) for row in made] == [
        (name, ["logits", "embedding"] if name == "one" else ["logits"]) for name in cached
    ]
    assert_same_run(lab.run("cached", **config), live)


@pytest.mark.parametrize("cached", [("two",), ("one", "two")])
def test_an_average_beside_a_view_that_one_teacher_alone_is_asked_for(lab, teacher, cached):
    teachers = {"one": teacher, "two": other_teacher(lab)}
    losses = {"ce": {}, "kd": {"teacher": "average"}, "crld": {"teacher": "one"}}
    more = {"losses": losses, "data": {**DATA, "extra_views": STRONG}}
    live = lab.run("live", **two(*teachers.values(), **more))
    for name in cached:
        teachers[name] = {**teachers[name], "cache": {"dtype": "fp32"}}
    config = two(*teachers.values(), **more)
    lab.precompute("made", **config)
    assert_same_run(lab.run("cached", **config), live)


def unit(dtype: str) -> float:
    """Largest relative error of rounding."""
    return {"fp16": 2.0**-11, "bf16": 2.0**-8}[dtype]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_stored_form_moves_the_first_losses_by_its_rounding(lab, teacher, dtype):
    """At the first step the students are the same, so only the answers differ: z by at most u |z|. kd at temperature T
    is T² KL, whose derivative by a logit is T (p − q), at most T in all; so its term moves by less than
    2 T u max |z|. Ours at T = 4."""
    losses = {"ce": {}, "kd": {"temperature": 4.0}}
    config = {**SMALL, "data": DATA, "losses": losses}
    live = lab.run("live", **config, teacher=teacher)
    config["teacher"] = {**teacher, "cache": {**EXACT, "dtype": dtype}}
    lab.precompute("made", **config)
    cached = lab.run("cached", **config)
    ((shard, *_), largest) = lab.cache.shards("logits"), 0.0
    largest = float(lab.cache.open("logits", shard, 1437).parts["values"].abs().max())
    first = [terms(run)[0] for run in (live, cached)]
    assert first[0]["ce"] == first[1]["ce"]
    assert 0 < abs(first[0]["kd"] - first[1]["kd"]) < 2 * 4 * unit(dtype) * largest
    # 12 steps of learning rate 0.05 later the students are as near as the answers are, within a small factor.
    assert 0 < distance(cached, live) < 10 * unit(dtype)


def test_the_largest_logits_keep_the_likelihood_of_likely_classes(lab, teacher):
    """At T = 1 the k largest keep their probabilities: kd = Σ p (log p − log q) moves by the entropy of how the rest
    was spread, which is at most its mass times log(classes − k)."""
    losses = {"ce": {}, "kd": {"temperature": 1.0}}
    config = {**SMALL, "data": DATA, "losses": losses}
    live = lab.run("live", **config, teacher=teacher)
    moved = []
    for k in (3, 9):
        config["teacher"] = {**teacher, "cache": {"path": f"cache/{k}", "dtype": "fp32", "top_k": k}}
        (row,) = lab.precompute(f"made{k}", **config)
        assert row["bytes_a_picture"] == 4 + 4 * k + 4 + k
        moved.append(abs(terms(lab.run(f"cached{k}", **config))[0]["kd"] - terms(live)[0]["kd"]))
    assert moved[1] < 1e-5 < moved[0] < 0.2


def test_a_run_that_was_broken_off_goes_on_from_the_cache(lab, teacher):
    config = {**SMALL, **KD_CRD, "teacher": {**teacher, "cache": EXACT}, "checkpoint": {"every_steps": 2, "keep": 99}}
    lab.precompute("made", **config)
    whole = lab.run("whole", **config)
    for steps in (2, 6, 8):
        assert_same_run(lab.broken_off(whole, steps), whole)


def test_a_plugin_may_number_its_pictures(lab, teacher):
    """An augmentation of a user's, with options that JSON does not know as they are."""
    file = lab.path / "brighter.py"
    file.write_text(
        "import torch\n"
        "from pydantic import Field\n"
        "from kdray import Augmentation, AugmentationSpec, Options, hookimpl\n"
        "class BrighterOptions(Options):\n"
        "    steps: tuple[int, ...] = Field((0, 40, 80), description='Added.')\n"
        "class Brighter(Augmentation):\n"
        "    Options, draws = BrighterOptions, 1\n"
        "    @property\n"
        "    def variants(self):\n"
        "        return len(self.options.steps)\n"
        "    def variant(self, u):\n"
        "        return (u[:, 0] * self.variants).long()\n"
        "    def numbers(self, variant):\n"
        "        return ((variant + 0.5) / self.variants)[:, None]\n"
        "    def __call__(self, images, u):\n"
        "        by = torch.tensor(self.options.steps)[self.variant(u)]\n"
        "        return (images + by[:, None, None, None]).clamp(max=255).to(torch.uint8)\n"
        "@hookimpl\n"
        "def kdray_augmentations():\n"
        "    return [AugmentationSpec('brighter', Brighter)]\n"
    )
    lab.registry = Registry.load(paths=[file])
    config = {**SMALL, "data": {**DATA, "augment": ["brighter"]}, "losses": {"kd": {}}}
    live = lab.run("live", **config, teacher=teacher)
    config["teacher"] = {**teacher, "cache": EXACT}
    (row,) = lab.precompute("made", **config)
    assert row["needed"] <= 3 * 70
    assert_same_run(lab.run("cached", **config), live)


HEAD = """
import torch.nn.functional as F
from kdray import Distiller, DistillerSpec, Requires, hookimpl
class Head(Distiller):
    requires = Requires(student={"logits"}, teacher={"logits", "embedding", "head"})
    def forward(self, student, teacher, batch, step):
        weight, bias = teacher.head
        off = (F.linear(teacher.embedding, weight, bias) - teacher.logits).abs().max()
        return {"near": F.mse_loss(student.logits, F.linear(teacher.embedding, weight)), "off": off}
@hookimpl
def kdray_distillers():
    return [DistillerSpec("head", Head)]
"""


def test_a_loss_that_reads_the_classifier_at_each_step(lab, teacher):
    file = lab.path / "head.py"
    file.write_text(HEAD)
    lab.registry = Registry.load(paths=[file])
    config = {**SMALL, "data": DATA, "losses": {"head": {}}}
    live = lab.run("live", **config, teacher=teacher)
    config["teacher"] = {**teacher, "cache": EXACT}
    lab.precompute("made", **config)
    cached = lab.run("cached", **config)
    assert_same_run(cached, live)
    assert 0 <= max(row["head/off"] for row in terms(cached)) < 1e-4


def test_a_teacher_says_the_same_of_a_picture_whatever_comes_with_it(lab, teacher):
    """What the rest stands on: the answers of a batch of 256 are those of the batches of a run."""
    from kdray.config.load import load_config
    from kdray.engine.build import build

    config = load_config(lab.config("one", **KD_CRD, teacher=teacher), registry=lab.registry).config
    parts = build(config, lab.registry, lab.path, {"teacher": teacher["checkpoint"]}, torch.device("cpu"))
    live, pictures = parts.teachers.by_name["teacher"], parts.data.train.source.images[:256]
    whole = live(pictures)
    for size in (1, 3, 16, 70, 255):
        part = live(pictures[-size:])
        assert torch.equal(part.logits, whole.logits[-size:]) and torch.equal(part.embedding, whole.embedding[-size:])
