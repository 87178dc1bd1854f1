import json

import pytest
import typer
from typer.testing import CliRunner

from kdray.cli.list_ import list_
from kdray.cli.plugins import plugins
from kdray.loader import load_plugins
from kdray.registry import Registry


@pytest.fixture
def run(install, monkeypatch, good):
    """run(*arguments): the command line with one good, one broken and two conflicting plugins."""
    install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": good("foo")}, version="0.3")
    install("kdray-bad", {"bad": "fake_bad"}, {"fake_bad": "import no_such_module"})
    install("kdray-a", {"a": "fake_a"}, {"fake_a": good("same")})
    install("kdray-b", {"b": "fake_b"}, {"fake_b": good("same")})
    registry = Registry(load_plugins())
    monkeypatch.setattr(Registry, "default", lambda: registry)
    app = typer.Typer()
    app.command("list")(list_)
    app.command()(plugins)
    return lambda *arguments: CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def test_list_as_json(run):
    result = run("list", "distillers", "--json")
    assert result.exit_code == 0
    (foo,) = [row for row in json.loads(result.stdout) if row["name"] == "foo"]
    assert foo["summary"] == "A loss for tests."
    assert foo["options"] == {"scale": {"description": "A factor.", "default": 1.0}}
    assert (foo["distribution"], foo["version"], foo["student"], foo["teacher"]) == ("kdray-foo", "0.3", ["logits"], [])
    assert "'same' is defined by more than one plugin" in result.stderr
    assert "kdray-bad:bad" in result.stderr


@pytest.mark.parametrize("kind", ["distillers", "models", "datasets", "augmentations", "optimizers"])
def test_list_as_a_table(run, kind):
    result = run("list", kind)
    assert result.exit_code == 0, result.output
    assert kind != "distillers" or "A loss for tests." in result.stdout


def test_list_configs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "./configs" in run("list", "configs").stderr
    (tmp_path / "configs" / "teachers").mkdir(parents=True)
    (tmp_path / "configs" / "crd.yaml").write_text("#\n# kdray train configs/crd.yaml\n# more\nname: crd\n")
    (tmp_path / "configs" / "teachers" / "wrn.yaml").write_text("name: wrn\n")
    assert json.loads(run("list", "configs", "--json").stdout) == [
        {"name": "crd", "path": "configs/crd.yaml", "summary": "more"},
        {"name": "teachers/wrn", "path": "configs/teachers/wrn.yaml", "summary": ""},
    ]


def test_list_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("list", "runs", "--json")
    assert json.loads(result.stdout) == []
    assert f"there are no runs in {tmp_path / 'runs'}" in result.stderr
    rows = [{"name": "first", "path": "/runs/first", "state": "finished", "started": 1.0, "last": 0.5, "best": None}]
    rows[0]["parts"] = None
    monkeypatch.setattr("kdray.run.folder.list_runs", lambda folder: rows)
    assert json.loads(run("list", "runs", "--json").stdout) == rows
    assert "50.00%" in run("list", "runs").stdout


def test_an_unknown_kind_is_refused(run):
    result = run("list", "distilers")
    assert result.exit_code == 2
    assert "distillers" in result.stderr


def test_plugins_as_json(run):
    result = run("plugins", "--json")
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout) if row["distribution"] != "kdray"}
    assert rows["foo"]["status"] == "loaded"
    assert rows["foo"]["provides"] == {"distillers": ["foo"]}
    assert (rows["bad"]["status"], rows["bad"]["phase"]) == ("failed", "import")
    assert "no_such_module" in rows["bad"]["error"]


def test_plugins_as_a_table(run):
    result = run("plugins")
    assert result.exit_code == 0
    assert "kdray-foo 0.3" in result.stdout
    assert "kdray-bad:bad failed (import): ModuleNotFoundError: No module named 'no_such_module'" in result.stdout
    assert "conflict: distiller 'same'" in result.stderr
