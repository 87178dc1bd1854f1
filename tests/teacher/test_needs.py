"""What is stored follows from the losses."""

import pytest

from kdray.cli.list_ import Kind, list_rows
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.teacher.needs import needs
from tests.teacher.cache_lab import EXACT

DATA = {"samples": 40, "augment": [{"crop": {"padding": 1}}]}
STRONG = {"strong": {"augment": [{"cutout": {"size": 3}}]}}
CRD = {"dim": 8, "negatives": {"kind": "batch"}}


def stored(lab, folder="cache/here") -> dict[str, list[str]]:
    """By folder of a cache, the outputs that it has."""
    found: dict[str, list[str]] = {}
    for file in lab.shards(folder):
        *above, output, _ = file.relative_to(lab.path / folder).parts
        found.setdefault("/".join(above), []).append(output)
    return {kind: sorted(set(outputs)) for kind, outputs in found.items()}


@pytest.mark.parametrize(
    "losses, outputs",
    [
        ({"kd": {}}, ["logits"]),
        ({"crd": CRD}, ["embedding"]),
        ({"kd": {}, "crd": CRD}, ["embedding", "logits"]),
        ({"soft": {"use": "kd"}, "hard": {"use": "kd", "temperature": 1.0}}, ["logits"]),
        ({"wkd_l": {}}, ["logits"]),  # the classifier comes from the weights
        ({"srrl": {}}, ["embedding", "logits"]),
    ],
)
def test_what_the_losses_read(lab, teacher, losses, outputs):
    (row,) = lab.precompute("a", data=DATA, losses={"ce": {}, **losses}, teacher={**teacher, "cache": EXACT})
    assert stored(lab) == {"": outputs} and sorted(row["outputs"]) == outputs
    widths = {"logits": 10, "embedding": 32}
    assert row["bytes_a_picture"] == sum(4 * widths[output] + 4 for output in outputs)


def test_a_further_view_has_a_folder(lab, teacher):
    config = {"data": {**DATA, "extra_views": STRONG}, "teacher": {**teacher, "cache": EXACT}}
    rows = lab.precompute("a", **config, losses={"crld": {}, "crd": CRD})
    assert stored(lab) == {"": ["embedding", "logits"], "view-strong": ["logits"]}
    assert [(row["view"], row["path"].endswith("view-strong")) for row in rows] == [("", False), ("strong", True)]


def test_each_teacher_has_a_cache_of_what_is_asked_of_it(lab, teacher):
    losses = {"kd": {"teacher": "average"}, "crd": {**CRD, "teacher": "one"}, "crld": {"teacher": "two"}}
    data = {**DATA, "extra_views": STRONG}
    teachers = {name: {**teacher, "cache": {"path": f"cache/{name}"}} for name in ("one", "two")}
    rows = lab.precompute("a", data=data, losses=losses, teachers=teachers)
    assert stored(lab, "cache/one") == {"": ["embedding", "logits"]}
    assert stored(lab, "cache/two") == {"": ["logits"], "view-strong": ["logits"]}
    assert [(row["teacher"], row["view"]) for row in rows] == [("one", ""), ("two", ""), ("two", "strong")]


def test_only_teachers_with_a_cache_are_asked_where_the_config_speaks_of_one(lab, teacher):
    losses = {"a": {"use": "kd", "teacher": "one"}, "b": {"use": "kd", "teacher": "two"}}
    teachers = {"one": teacher, "two": {**teacher, "cache": EXACT}}
    assert [row["teacher"] for row in lab.precompute("a", data=DATA, losses=losses, teachers=teachers)] == ["two"]
    teachers["two"] = {**teacher, "normalize": {"mean": [0.5], "std": [0.5]}}
    rows = lab.precompute("b", data=DATA, losses=losses, teachers=teachers)
    assert [row["teacher"] for row in rows] == ["one", "two"] and rows[0]["path"] != rows[1]["path"]


def test_a_loss_that_is_added_adds_what_it_reads(lab, teacher):
    config = {"data": DATA, "teacher": {**teacher, "cache": EXACT}}
    lab.precompute("kd", **config, losses={"kd": {}})
    before = lab.contents()
    (row,) = lab.precompute("both", **config, losses={"kd": {}, "crd": CRD})
    assert stored(lab) == {"": ["embedding", "logits"]} and row["missing_before"] > 0
    assert before.items() <= lab.contents().items()


@pytest.mark.parametrize("section", ["teacher", "teachers"])
def test_a_loss_that_no_cache_can_serve_is_named(lab, teacher, section):
    teacher["cache"] = EXACT
    losses = {"kd": {}, "maps": {"use": "at"}, "vkd": {}}
    more = {"teacher": teacher}
    if section == "teachers":
        losses = {label: {**loss, "teacher": "big"} for label, loss in losses.items()}
        more = {"teachers": {"big": teacher}}
    key = "teachers.big" if section == "teachers" else "teacher"
    message = lab.refused(ConfigError, "a", data=DATA, losses=losses, **more)
    assert f"{key}.cache: a cache holds logits and embedding, and losses.maps reads its features" in message
    assert f"Remove {key}.cache" in message and "vkd" not in message and "`kdray list distillers`" in message
    with pytest.raises(ConfigError, match=r"losses\.maps reads its features"):
        lab.precompute("b", data=DATA, losses=losses, **more)


def test_the_list_of_distillers_says_which_a_cache_can_serve():
    """For each of them, what `needs` says."""
    registry = Registry.default()
    rows, _ = list_rows(Kind.distillers)
    served = {row["name"]: row["cache"] for row in rows}
    assert served["kd"] and served["srrl"] and not served["at"]
    for name, spec in registry.distillers.items():
        if spec.cls.requires.teacher:
            beyond = needs("teacher", {name: "teacher"}, {name: spec.cls}).beyond
            assert served[name] == (not beyond), name
