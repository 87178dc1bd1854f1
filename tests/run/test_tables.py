"""Published tables as data, and their cells as configs."""

import re
from pathlib import Path

import pytest
import yaml

from kdray.config.load import load_config
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.reproduce.cells import Part, job_of, same_work
from kdray.reproduce.result import markdown, summarise
from kdray.reproduce.table import find_table, known
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
OWN = {
    "title": "ours",
    "source": "nobody",
    "epoch": "last",
    "seeds": [0, 1],
    "pairs": {
        "a-b": {"teacher": "wrn_40_2", "student": "wrn_16_2", "published": 75.0},
        "a-c": {"teacher": "wrn_40_2", "student": "ShuffleV1", "set": {"optimizer.lr": 0.01}},
    },
    "teacher": "teachers/{teacher}.yaml",
    "methods": {
        "alone": {"config": "teachers/{student}.yaml", "published": [70.0, 60.0]},
        "kd": {"config": "repdistiller/kd.yaml", "published": [72.5, None]},
    },
}


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture
def table(tmp_path):
    def write(**changes):
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump({**OWN, **changes}, sort_keys=False))
        return find_table(str(file))

    return write


def job(found, registry, tmp_path, **part):
    return job_of("job", found, Part(**part), CONFIGS, tmp_path / "runs", registry)


@pytest.mark.parametrize("name", ["crd1", "crd2"])
def test_every_cell_of_a_published_table_is_a_config(name, registry, tmp_path):
    assert name in known()
    _, found = find_table(name)
    made = job(found, registry, tmp_path, seeds="3")
    published = [n for method in found.methods.values() for n in method.published if n is not None]
    assert len(made.cells) == len(published)
    for cell in made.cells:
        pair, config = found.pairs[cell.pair], cell.config
        assert config.student.model == pair.student and config.seed == 3 and config.schedule.epochs == 240
        slow = pair.student in ("MobileNetV2", "ShuffleV1", "ShuffleV2")
        assert config.optimizer.lr == (0.01 if slow else 0.05)
        if cell.method != "alone":
            assert config.teacher.model == pair.teacher == made.recipes[config.teacher.train].student.model


def test_the_numbers_are_those_of_the_configs():
    """The comments of the methods' configs were written from the same README, independently of the table."""
    _, found = find_table("crd1")
    for name, method in found.methods.items():
        if name != "alone":
            text = (CONFIGS / method.config).read_text()
            assert float(re.search(r"Published: ([\d.]+) %", text)[1]) == found.published("resnet32x4-resnet8x4", name)
    for number in (1, 2):
        _, found = find_table(f"crd{number}")
        alone = found.methods["alone"].published
        for (_, pair), of_student in zip(found.pairs.items(), alone, strict=True):
            for network, accuracy in ((pair.teacher, pair.published), (pair.student, of_student)):
                text = (CONFIGS / "teachers" / f"{network}.yaml").read_text()
                assert float(re.search(r"Published accuracy .*: ([\d.]+) %", text)[1]) == accuracy


def test_cells(table, registry, tmp_path):
    _, found = table()
    made = job(found, registry, tmp_path)
    assert [(cell.pair, cell.method, cell.seed, cell.folder) for cell in made.cells] == [
        ("a-b", "alone", 0, "alone/wrn_16_2-seed0"),
        ("a-b", "alone", 1, "alone/wrn_16_2-seed1"),
        ("a-b", "kd", 0, "a-b/kd-seed0"),
        ("a-b", "kd", 1, "a-b/kd-seed1"),
        ("a-c", "alone", 0, "alone/ShuffleV1-seed0"),  # a cell that the table has not is left out
        ("a-c", "alone", 1, "alone/ShuffleV1-seed1"),
    ]
    kd = made.cells[2].config
    assert Path(kd.teacher.train) == CONFIGS / "teachers" / "wrn_40_2.yaml"
    assert [cell.folder for cell in job(found, registry, tmp_path, pairs="a-b", methods="kd", seeds="7").cells] == [
        "a-b/kd-seed7"
    ]


def test_cells_of_one_student_share_its_run_alone(table, registry, tmp_path):
    pairs = {"a-b": OWN["pairs"]["a-b"], "d-b": {"teacher": "resnet110", "student": "wrn_16_2"}}
    _, found = table(pairs=pairs)
    made = job(found, registry, tmp_path, methods="alone")
    assert len(made.cells) == 4 and sorted(made.runs) == ["job/alone/wrn_16_2-seed0", "job/alone/wrn_16_2-seed1"]


def test_overrides_hold_for_teachers_too(table, registry, tmp_path):
    _, found = table()
    made = job(found, registry, tmp_path, overrides=("schedule.epochs=2", "data.batch_size=32"))
    kd, file = made.cells[2].config, tmp_path / "runs" / "job" / "teachers" / "wrn_40_2.yaml"
    assert Path(kd.teacher.train) == file and not file.exists()  # it is written when the work begins
    for config in (kd, made.recipes[str(file)]):
        assert config.schedule.epochs == 2 and config.data.batch_size == 32
    assert not same_work(kd, job(found, registry, tmp_path).cells[2].config)


def test_a_cache_makes_no_other_work(table, registry, tmp_path):
    _, found = table()
    config = job(found, registry, tmp_path).cells[2].config
    file = CONFIGS / "repdistiller" / "kd.yaml"
    there, live = (
        load_config(file, [f"teacher.cache={cache}"], registry=registry).config for cache in ("{dtype: bf16}", "null")
    )
    assert same_work(there, live) and not same_work(there, config)


@pytest.mark.parametrize(
    "part, message",
    [
        ({"pairs": "a-d"}, r"--pairs: the table has no 'a-d'\. Did you mean 'a-"),
        ({"methods": "crd"}, "--methods: the table has no 'crd'"),
        ({"seeds": "0,x"}, "--seeds wants whole numbers"),
        ({"seeds": "1,1"}, "each once"),
        ({"seeds": "-1"}, "from 0"),
        ({"pairs": "a-c", "methods": "kd"}, "no number for kd of a-c"),
        ({"overrides": ("losses.kd.temperature=2",)}, "values of data, schedule, .* can be changed"),
        ({"overrides": ("seed=2",)}, "can be changed"),
        ({"overrides": ("engine.precision=auto",)}, "the runs of a table have one"),
        ({"overrides": ("data.batch_sze=2",)}, "Did you mean 'batch_size'"),
    ],
)
def test_what_is_asked_for_is_looked_at(table, registry, tmp_path, part, message):
    _, found = table()
    with pytest.raises(ConfigError, match=message):
        job(found, registry, tmp_path, **part)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epoch": "median"}, r"own\.yaml:\d+:\d+: epoch"),
        ({"seeds": []}, "seeds"),
        ({"metods": {}}, "unknown key 'metods'. Did you mean 'methods'"),
        ({"methods": {"kd": {"config": "x.yaml", "published": [1.0]}}}, "1 numbers for 2 pairs"),
        ({"methods": {"kd": {"config": "x.yaml", "published": [1.0, 720.5]}}}, "must be at most 100, not 720.5"),
    ],
)
def test_a_table_that_is_wrong(table, changes, message):
    with pytest.raises(ConfigError, match=message):
        table(**changes)


def test_no_such_table(tmp_path):
    with pytest.raises(ConfigError, match=r"no table 'crd3'\. Did you mean 'crd"):
        find_table("crd3")
    (tmp_path / "x.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="a table is a mapping"):
        find_table(str(tmp_path / "x.yaml"))


def test_ours_beside_the_published(table):
    _, found = table()

    def ran(last, best):
        return {"last": {"top1": last}, "best": {"test_top1": best}}

    rows = [
        ("a-b", "kd", 0, ran(0.71, 0.72), None),
        ("a-b", "kd", 1, ran(0.73, 0.75), None),
        ("a-b", "alone", 0, None, "no memory\nand more"),
        ("a-b", "alone", 1, None, None),
    ]
    teacher, kd, alone = summarise(found, rows, {"wrn_40_2": 0.76})
    assert teacher["last"] == [76.0] and teacher["difference"] == pytest.approx(1.0)
    assert kd["last"] == [71.0, 73.0] and kd["difference"] == pytest.approx(-0.5)
    assert alone["failed"] == {0: "no memory\nand more"} and alone["runs"] == 2 and alone["difference"] is None
    text = markdown("x", found, ("schedule.epochs=2",), [teacher, kd, alone])
    assert "| a-b | kd | 2/2 | 72.50 | -0.50 | 72.00 ± 1.41 | 73.50 ± 2.12 |" in text
    assert "| a-b | teacher |  | 75.00 | +1.00 | 76.00 |  |" in text
    assert "| a-b | alone | 0/2 | 70.00 |  |  |  |" in text
    assert "- a-b, alone, seed 0: no memory" in text and "Other than published: `schedule.epochs=2`." in text
