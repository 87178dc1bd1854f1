"""Every command of the docs runs in some test: those that need nothing but digits, here; of the others it is said why
not and where else."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_named_commands import commands

from kdray.data.published import digits
from tests.conftest import ROOT, run_command

TEACHER = "runs/teacher/student.safetensors"
HERE = {
    "validate CONFIG --build": "validate configs/quickstart.yaml --build",
    "train CONFIG --dry-run": "train configs/quickstart.yaml --dry-run",
    "show CONFIG": "show configs/quickstart.yaml",
    "schema": "schema",
    "list distillers": "list distillers",
    "list distillers --json": "list distillers --json",
    "list distillers --markdown": "list distillers --markdown",
    "list models": "list models",
    "list datasets": "list datasets",
    "list commands": "list commands",
    "plugins": "plugins",
    "--help": "--help",
    "train configs/quickstart.yaml --num-workers 0 --profile": "train configs/teachers/digits.yaml --name teacher",
    "train CONFIG --profile": "train configs/quickstart.yaml --profile",
    "resume RUN": "resume quickstart",
    "stop RUN": "stop quickstart",
    "precompute CONFIG": "precompute configs/quickstart.yaml",
    "precompute CONFIG seed=1": "precompute configs/quickstart.yaml seed=1",
    "cache info": "cache info",
    "cache verify --config configs/crd.yaml": "cache verify --config configs/quickstart.yaml",
    "cache prune": "cache prune --yes",
    "train CONFIG --seeds 0,1,2": "train configs/kd.yaml --seeds 0,1,2",
    "train configs/quickstart.yaml --num-workers 0 --seeds 0,1,2,3,4": "train configs/crd.yaml --seeds 0,1,2",
    "runs": "runs",
    "list runs": "list runs",
    "compare RUN RUN": "compare quickstart kd-seed0",
    "compare kd-seed0 crd-seed0": "compare kd-seed0 crd-seed0",
    "compare kd crd": "compare kd crd",
    "report kd crd-seed0 crd-seed1 crd-seed2 -o kd-and-crd": "report kd crd-seed0 crd-seed1 crd-seed2 -o kd-and-crd",
    "evaluate RUN": "evaluate quickstart",
    "evaluate FILE --config CONFIG": "evaluate runs/quickstart/student.safetensors --config configs/quickstart.yaml",
    "evaluate FILE --config CONFIG --as teacher": f"evaluate {TEACHER} --config configs/quickstart.yaml --as teacher",
    "probe crd-wrn --data folder path=/data/tiny-imagenet": "probe quickstart --data digits",
    "export RUN": "export quickstart",
    "export RUN --int8": "export quickstart --int8",
    "export RUN --format onnx": "export kd-seed0 --format onnx",
    "export quickstart --format onnx": "export quickstart --format onnx",
    "predict RUN PICTURE…": "predict quickstart digits/0.png",
    "predict runs/quickstart/export/quickstart.onnx digits": "predict runs/quickstart/export/quickstart.onnx digits",
    "plugins new NAME": "plugins new mine",
    "plugins check NAME": "plugins check kd",
    "train runs/NAME/config.yaml student.checkpoint=null run.name=fresh": "train runs/kd-seed1/config.yaml "
    "student.checkpoint=null run.name=fresh",
}
"""As the docs have it, in the order in which it is done; and with names of what is here."""

ELSEWHERE = {
    "its page is carried out: test_tutorial.py, test_writing_a_plugin.py": [r"(tutorial|writing-a-plugin)\.md .*"],
    "each method's own config, on digits: tests/ray/test_every_method.py": [r"methods\.md train configs/.*"],
    "a verb, its options or its placeholders alone, or one of a plugin's": [
        r"\S+ (plugins )?[a-z|]+( (--[a-z-]+( 0)?|NAME|RUN\|FILE.*|PICTURE…))*",
        r"hooks\.md NAME|teacher-cache\.md precompute --all|data\.md evaluate --split train",
    ],
    "Ray, with workers: tests/ray/test_quickstart.py, test_doctor.py": [
        r"README\.md (train configs/quickstart\.yaml|doctor)"
    ],
    "a cluster: docs/clusters.md; simulated: tests/ray": [r".*(--address|--num-workers (8|4|2\.\.8)).*"],
    "a server, until it is ended: tests/ship/test_serve.py": [r".* serve (RUN|quickstart) --port.*"],
    "a search: tests/ray/test_tune.py, test_tune_more.py": [
        r".* tune (configs/tune/quickstart\.yaml|configs/crd\.yaml|--resume NAME)",
        r"tune\.md (stop NAME|train runs/tune-quickstart/best\.yaml)",
    ],
    "a published table: tests/ray/test_reproduce.py": [r".* (reproduce .*|stop TABLE)"],
    "data that are not here: tests/ship/test_probe.py, test_evaluation.py": [
        r".* probe \S+ --data stl10 --teacher",
        r".* evaluate cifar-run .*",
    ],
    "a page of one run, and runs of several names: tests/ship/test_report.py, tests/cli/test_compare_verb.py": [
        r".* report RUN…",
        r"compare\.md compare kd-a kd-b kd-c crd-a crd-b",
    ],
    "a damaged cache: tests/cli/test_cache.py": [r".* cache verify PATH --repair"],
}
"""Where, and patterns of page and command."""


def documented() -> list[tuple[str, str]]:
    return [(page.name, words) for page, words in commands() if page.suffix == ".md"]


def test_every_command_has_its_place():
    named, patterns = {words for _, words in documented()}, [p for of in ELSEWHERE.values() for p in of]
    assert not (gone := HERE.keys() - named), f"no page has them any more: {gone}"
    for page, words in documented():
        known = words in HERE or any(re.fullmatch(pattern, f"{page} {words}") for pattern in patterns)
        assert known, f"{page}: kdray {words} is run nowhere"
    for pattern in patterns:
        assert any(re.fullmatch(pattern, " ".join(each)) for each in documented()), f"no page has {pattern}"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A user's folder, with recipes of a few steps, and pictures."""
    home = tmp_path_factory.mktemp("home")
    quickstart = (ROOT / "configs" / "quickstart.yaml").read_text()
    for old, new in (
        ("teachers/digits.yaml, min_accuracy: 0.95", "teachers/digits.yaml"),
        ("epochs: 100, name: cosine, warmup: 2", "epochs: 2"),
        ("num_workers: 2", "num_workers: 0"),
        ("baseline: true", "baseline: false"),
    ):
        assert old in quickstart
        quickstart = quickstart.replace(old, new)
    teacher = (ROOT / "configs" / "teachers" / "digits.yaml").read_text()
    (home / "configs" / "teachers").mkdir(parents=True)
    (home / "configs" / "teachers" / "digits.yaml").write_text(teacher.replace("num_workers: 2", "num_workers: 0"))
    (home / "configs" / "quickstart.yaml").write_text(quickstart)
    for name, other in (("kd", "crd"), ("crd", "kd")):
        text = f"extends: quickstart.yaml\nname: {name}\nlosses: {{{other}: null}}\n"
        (home / "configs" / f"{name}.yaml").write_text(text)
    shutil.copy(ROOT / "kdray.toml", home)
    (home / "digits").mkdir()
    for number, picture in enumerate(digits(None, None, "test").images[:3, 0]):
        Image.fromarray(picture.numpy()).save(home / "digits" / f"{number}.png")
    return home


@pytest.mark.thorough
@pytest.mark.parametrize("words", HERE)
def test_command(words, home, monkeypatch, capfd):
    """In order: each may need what those before it left behind."""
    monkeypatch.chdir(home)
    code, said = run_command(monkeypatch, *HERE[words].split()), capfd.readouterr()
    assert not code, said.err
    assert "Traceback" not in said.err and (said.out or said.err).strip()
