"""docs/methods.md is what `kdray list distillers --markdown` writes of the methods that come with kdray."""

import re
from pathlib import Path

import pytest

from kdray.cli.list_ import Kind, list_rows
from kdray.cli.methods import markdown

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # configs are looked for from here
        return {row["name"]: row for row in list_rows(Kind.distillers)[0] if row["distribution"] == "kdray"}


def test_the_page_is_up_to_date(rows):
    page = ROOT.joinpath("docs/methods.md").read_text()
    assert page == markdown(list(rows.values())), "run: kdray list distillers --markdown > docs/methods.md"


def test_every_method_has_a_section_and_every_config_is_there(rows):
    page = markdown(list(rows.values()))
    assert re.findall(r"^## (\S+)$", page, re.M) == sorted(rows)
    configs = re.findall(r"`kdray train (\S+)`", page)
    assert configs and all(ROOT.joinpath(config).exists() for config in configs)


def test_facts(rows):
    kd, crd = rows["kd"], rows["crd"]
    assert (kd["student"], kd["teacher"], kd["cache"], kd["over"], kd["stage"]) == (
        *(["logits"], ["logits"]),
        *(True, "sample", False),
    )
    assert kd["published"] == {"resnet8x4": 73.33, "wrn_16_2": 74.92} and "RepDistiller" in kd["source"]
    assert kd["scheduled"] == ["temperature"]
    assert kd["configs"] == [f"configs/{name}.yaml" for name in ("repdistiller/kd", "kd", "kd_mixup", "kd_schedule")]
    assert {path.stem for path in ROOT.glob("configs/**/crd*.yaml")} == {Path(path).stem for path in crd["configs"]}
    assert kd["options"]["temperature"]["default"] == 4.0
    assert crd["over"] == "batch"
    bank = crd["options"]["negatives"]["choices"]["bank"]
    assert crd["options"]["negatives"]["default"]["count"] == bank["count"]["default"] == 16384


def test_a_section():
    row = {
        **{
            "name": "mine",
            "summary": "A | B.",
            "doc": "x − y.\n\nMore.",
            "paper": "Me: It. 2026",
            "student": ["features"],
        },
        **{"teacher": ["features", "logits"], "views": ["strong"], "cache": False, "over": "batch", "stage": True},
        **{"own_network": True, "scheduled": ["scale"], "published": {"resnet8x4": 75.5, "wrn_16_2": None}},
        **{"source": "its table 2", "configs": ["configs/methods/mine.yaml", "configs/mine_b.yaml"]},
        "options": {"scale": {"description": "A factor.", "default": 1.0}, "dim": {"description": "A width."}},
    }
    page = markdown([row])
    assert "| [mine](#mine) | A \\| B. | features / features, logits |  | batch | yes | 75.50 |  |\n" in page
    assert page.endswith(
        """## mine

A | B.

```text
x − y.

More.
```

- paper: Me: It. 2026
- reads of the student: features; of the teacher: features, logits; on the views strong too
- a cached teacher cannot serve it
- over the global batch, of all workers
- has a first stage
- evaluates and exports a network of its own in the student's place
- published: ResNet-32x4 → ResNet-8x4 75.50 (its table 2)
- run it: `kdray train configs/methods/mine.yaml`, `kdray train configs/mine_b.yaml`

| option | default |  |
| --- | --- | --- |
| `scale` | `1.0` | A factor. May move over the epochs. |
| `dim` | required | A width. |
"""
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [("CoCoRD", "crd"), ("GKL", "ikl"), ("WTTM", "ttm"), ("FitNet", "hint"), ("label smoothing", "ce")],
)
def test_a_method_by_another_name(rows, name, method):
    assert name in rows[method]["summary"] + rows[method]["doc"]


def test_what_is_left_out_is_named(rows):
    head = markdown(list(rows.values())).split("| name |")[0]
    assert "WCoRD" in head and "CRCD" in head
