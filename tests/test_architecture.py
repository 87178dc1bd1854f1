"""What must not depend on what, and what must be written down."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import kdray

ROOT = Path(__file__).parent.parent


def imports(file: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    package = file.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: -node.level]) + "." if node.level else ""
            found.add(f"{base}{node.module or ''}".rstrip("."))
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", ["engine", "data", "models", "teacher", "config", "run", "testing"])
def test_only_launch_and_the_command_line_know_ray(folder):
    for file in files(f"kdray/{folder}"):
        used = {
            name for name in imports(file) if name == "ray" or name.startswith(("ray.", "kdray.launch", "kdray.cli"))
        }
        assert not used, f"{file}: {used}"


def test_first_party_plugins_use_public_names_only():
    for file in files("plugins"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (
                node.level or node.module.split(".")[0] in ("kdray", "kdray_plugins")
            ):
                assert node.module == "kdray" and not node.level, f"{file} imports from {node.module}"
                assert {alias.name for alias in node.names} <= set(kdray.__all__), file
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("kdray.") for alias in node.names), file


def test_every_public_name_can_be_imported():
    assert all(getattr(kdray, name) is not None for name in kdray.__all__)


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert kdray.__version__ == project["version"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]


def test_every_package_is_in_the_distribution():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "kdray").rglob("__init__.py")}
    assert listed == there | {"kdray_plugins"}


def test_help_loads_neither_torch_nor_ray():
    heavy = {"torch", "ray", "sklearn", "pyarrow"}
    code = f"import sys; from kdray.cli.main import app; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_loop_runs_without_ray(lab, monkeypatch):
    """As on a machine where Ray is not installed."""
    monkeypatch.setitem(sys.modules, "ray", None)
    from kdray.config.load import load_config
    from kdray.engine.context import Context
    from kdray.engine.train import Job, train
    from kdray.registry import Registry
    from kdray.run.metrics import FileLog, read_rows

    config = load_config(lab.config("no-ray"), registry=Registry.default()).config
    (lab.path / ".token").write_text("x")
    train(Job(config, lab.path, lab.path), Registry.default(), Context(), FileLog(lab.path, "x"))
    assert [row["epoch"] for row in read_rows(lab.path / "metrics.jsonl") if row["kind"] == "epoch"] == [1, 2]
    assert (lab.path / "student.safetensors").exists()
