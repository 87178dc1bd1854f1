"""Packages of others, installed by pip into an environment of their own: good ones are used, bad ones stop nobody."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from tutorial import files

LOSS = """
from kdray import Distiller, DistillerSpec, Requires, hookimpl

class Loss(Distiller):
    requires = Requires(student={"logits"})
    def forward(self, student, teacher, batch, step):
        return student.logits.square().mean()

@hookimpl
def kdray_distillers():
    return [DistillerSpec("NAME", Loss)]
"""
BAD = {
    "broken": "import a_module_that_nobody_has\n" + LOSS,
    "misread": LOSS.replace("kdray_distillers()", "kdray_distillers(registry)"),
    "ancient": "kdray_api = 0\n" + LOSS,
    "taken": LOSS.replace("NAME", "kd"),
}
WHY = {
    "broken": ("import", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
    "misread": ("check", "kdray_distillers() has an unknown argument 'registry'; it takes none"),
    "ancient": ("check", "it is written for hook version 0 (kdray_api)"),
}
"""Plugin to phase and message of its failure."""

# Runs each of the given command lines and prints (exit code, output, errors) of all as JSON.
SESSION = """
import contextlib, io, json, sys
from kdray.cli.main import main
answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["kdray", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


def package(folder: Path, name: str, source: str) -> Path:
    """The tutorial's package, with another module and name."""
    place = folder / name
    place.mkdir()
    (place / "pyproject.toml").write_text(files()["pyproject.toml"].replace("rowsim", name))
    (place / f"{name}.py").write_text(source.replace("NAME", name))
    return place


class Elsewhere:
    """An environment beside this one, which sees what this one has, and its own packages."""

    def __init__(self, folder: Path):
        self.folder = folder
        venv.create(folder / "venv", system_site_packages=True, with_pip=False, symlinks=True)
        self.python = str(folder / "venv" / "bin" / "python")
        site = Path(self.call("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        there = sysconfig.get_path("purelib")
        (site / "beside.pth").write_text(f"import site; site.addsitedir({there!r})\n")

    def call(self, *words: str, code: int = 0) -> str:
        done = subprocess.run([self.python, *words], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def install(self, *packages: Path) -> None:
        offline = ("--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check", "-q")
        self.call("-m", "pip", "install", *offline, *map(str, packages))

    def kdray(self, *lines: str) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each command line, all in one process."""
        return json.loads(self.call("-c", SESSION, json.dumps([line.split() for line in lines])).splitlines()[-1])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Elsewhere:
    """With the tutorial's package, the scaffold's, and the bad ones."""
    found = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    ((code, out, err),) = found.kdray("plugins new fresh_idea")
    assert code == 0, err
    scaffold = found.folder / out.strip()
    tutorial = package(found.folder, "rowsim", files()["rowsim.py"])
    found.install(scaffold, tutorial, *(package(found.folder, name, source) for name, source in BAD.items()))
    return found


def config(folder: Path, loss: str, **section) -> str:
    file = folder / f"config-{loss}.yaml"
    text = files()["rowsim.yaml"].replace("train: teacher.yaml", "checkpoint: none.safetensors")
    line = next(line for line in text.splitlines() if line.startswith("  rowsim:"))
    file.write_text(text.replace(line, f"  {loss}: {json.dumps(section)}"))
    return file.name


def test_what_the_host_says_of_all(elsewhere):
    (code, out, err), (_, schema, _), (plugins_code, plugins, told) = elsewhere.kdray(
        "list distillers --json", "schema", "plugins --json"
    )
    assert code == plugins_code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["rowsim"]["distribution"] == "kdray-rowsim"
    assert rows["fresh_idea"]["distribution"] == "kdray-fresh-idea"
    assert not {"kd", *WHY} & set(rows)
    assert "distiller 'kd' is defined by more than one plugin" in err
    assert all(f"kdray-{name}:{name}" in err for name in WHY)
    assert "Power of the cosines" in schema and "fresh_idea" in schema

    infos = {info["name"]: info for info in json.loads(plugins) if info["distribution"] != "kdray"}
    assert infos["rowsim"]["provides"] == {"distillers": ["rowsim"]}
    assert {name: infos[name]["status"] for name in ("rowsim", "fresh_idea", "taken")} == dict.fromkeys(
        ("rowsim", "fresh_idea", "taken"), "loaded"
    )
    for name, (phase, why) in WHY.items():
        assert (infos[name]["status"], infos[name]["phase"], infos[name]["version"]) == ("failed", phase, "0.1.0")
        assert why in infos[name]["error"]
    assert "kdray:kd" in told and "kdray-taken:taken" in told


def test_only_configs_that_need_a_bad_one_fail(elsewhere):
    folder = elsewhere.folder
    good, kd, *bad = elsewhere.kdray(
        f"validate {config(folder, 'rowsim', sharpness=2.0)}",
        f"validate {config(folder, 'kd')}",
        *(f"validate {config(folder, name)}" for name in WHY),
    )
    assert good[0] == 0, good[2]
    assert kd[0] == 3
    assert 'Block one of them in kdray.toml: [plugins] block = ["kdray-taken:taken"]' in kd[2]
    for (code, _, err), (name, (_, why)) in zip(bad, WHY.items(), strict=True):
        assert code == 3
        assert f"plugin kdray-{name}:{name} (kdray-{name} 0.1.0) failed to load" in err and why in err
    ancient = bad[list(WHY).index("ancient")][2]
    assert "has hook version 1: upgrade the plugin" in ancient


def test_check(elsewhere):
    whole, taken, broken, unknown = elsewhere.kdray(
        "plugins check kdray-rowsim --json",
        "plugins check taken",
        "plugins check broken",
        "plugins check rowsimm",
    )
    assert whole[0] == 0, whole[1]
    (row,) = json.loads(whole[1])
    assert (row["name"], row["passed"]) == ("rowsim", True)
    assert taken[0] == 3 and "defined by more than one plugin" in taken[2]
    assert broken[0] == 3 and WHY["broken"][1] in broken[2]
    assert unknown[0] == 3 and "Did you mean 'rowsim'?" in unknown[2]  # it may be one of the broken ones


def test_blocking_the_other_makes_the_name_free(elsewhere):
    (elsewhere.folder / "kdray.toml").write_text('[plugins]\nblock = ["kdray-taken"]\n')
    ((code, _, err),) = elsewhere.kdray(f"validate {config(elsewhere.folder, 'kd')}")
    (elsewhere.folder / "kdray.toml").unlink()
    assert code == 0, err


def test_the_scaffold_passes_its_own_tests(elsewhere):
    said = elsewhere.call("-m", "pytest", "-q", "-p", "no:cacheprovider", "kdray-fresh-idea")
    assert "passed" in said
