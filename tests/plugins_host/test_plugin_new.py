"""`kdray plugins new` and the exit codes of `kdray plugins check`."""

import json

import broken_distillers as broken
import pytest
from typer.testing import CliRunner

from kdray import DistillerSpec
from kdray.cli.main import app
from kdray.errors import ConfigError, PluginError
from kdray.registry import Registry


def kdray(*arguments):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["plugins", *map(str, arguments)])


def test_a_package_is_written(tmp_path):
    result = kdray("new", "soft_mse", "--dir", tmp_path / "deep")
    assert result.exit_code == 0, result.output
    package = tmp_path / "deep" / "kdray-soft-mse"
    assert result.stdout == f"{package}\n"
    assert sorted(p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()) == [
        "README.md", "kdray_soft_mse.py", "pyproject.toml", "tests/test_soft_mse.py",
    ]  # fmt: skip
    assert "@" not in (package / "pyproject.toml").read_text()
    assert "class SoftMse(Distiller)" in (package / "kdray_soft_mse.py").read_text()


@pytest.mark.parametrize("name", ["Soft", "soft-mse", "1st", "a__b", "_a", "a/b", "class", "..", "", "ä"])
def test_a_bad_name_is_refused(tmp_path, name):
    result = kdray("new", name, "--dir", tmp_path)
    assert isinstance(result.exception, ConfigError) and "cannot be the name" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_taken_name_or_folder_is_refused(tmp_path):
    assert "there is a distiller 'kd' already" in str(kdray("new", "kd", "--dir", tmp_path).exception)
    assert not list(tmp_path.iterdir())
    (tmp_path / "kdray-mine").write_text("")
    assert "exists already" in str(kdray("new", "mine", "--dir", tmp_path).exception)
    assert "cannot be written" in str(kdray("new", "mine", "--dir", tmp_path / "kdray-mine").exception)


def test_check_tells_what_failed(monkeypatch):
    monkeypatch.setitem(
        Registry.default().distillers, "sample_scope", DistillerSpec("sample_scope", broken.SampleScope)
    )
    monkeypatch.setitem(Registry.default().owners, ("distillers", "sample_scope"), [])
    result = kdray("check", "sample_scope")
    assert isinstance(result.exception, PluginError) and result.exception.exit_code == 3
    assert str(result.exception) == "the contract is not kept by sample_scope (scope)"
    assert "failed" in result.stdout and "say 'batch'" in result.stdout
    (row,) = json.loads(kdray("check", "sample_scope", "--json").stdout)
    assert [check["name"] for check in row["checks"] if not check["passed"]] == ["scope"]


def test_check_with_options():
    (row,) = json.loads(kdray("check", "crd", "negatives.kind=batch", "dim=16", "--json").stdout)
    assert row["passed"]
    for given, message in (
        ("negatives.kind=none", "crd: negatives.kind: must be one of 'bank'"),
        ("dim=-1", "crd: dim: must be greater than 0, not -1"),
        ("dmi=3", "Did you mean 'dim'?"),
    ):
        assert message in str(kdray("check", "crd", given).exception)
    assert "write option=value" in str(kdray("check", "crd", "dim").exception)


def test_check_of_what_has_no_distillers():
    assert "has no distillers" in str(kdray("check", "kdray.models.builtin").exception)
