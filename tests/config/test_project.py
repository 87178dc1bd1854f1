"""kdray.toml."""

from pathlib import Path

import pytest

from kdray.config.project import ProjectFile, find_project
from kdray.errors import ConfigError


def test_without_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = find_project()
    assert project.file is None
    assert (project.data, project.runs) == (tmp_path / "data", tmp_path / "runs")
    assert (project.plugin_paths, project.blocked, project.ray_address) == ((), (), None)


def test_found_upward(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "kdray.toml").write_text(
        '[paths]\ndata = "../pictures"\nruns = "/r"\n[plugins]\nload = ["my.py", "more"]\nblock = ["crd"]\n'
        '[ray]\naddress = "auto"\n'
    )
    project = find_project(tmp_path / "a" / "b")
    assert project.root == tmp_path
    assert project.data == tmp_path.parent / "pictures"
    assert project.runs == Path("/r")
    assert project.plugin_paths == (tmp_path / "my.py", tmp_path / "more")
    assert project.blocked == ("crd",)
    assert project.ray_address == "auto"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[paths]\ndat = 'x'\n", "kdray.toml: paths: unknown key 'dat'. Did you mean 'data'?"),
        ("a = " + "[" * 3000, "kdray.toml: not TOML: too many levels of nesting, or digits of a number"),
        ("a = " + "9" * 5000, "kdray.toml: not TOML: too many levels of nesting, or digits of a number"),
        ('[paths]\nruns = "a\\u0000b"\n', "kdray.toml: 'a\\x00b' is not a path: the character U+0000 is not allowed"),
        ("[path]\n", "kdray.toml: unknown key 'path'. Did you mean 'paths'?"),
        ("[plugins]\nload = 'x'\n", "kdray.toml: plugins.load: must be a list, not the text 'x'"),
        ("[plugins]\nload = [1]\n", "kdray.toml: plugins.load.0: must be text, not 1"),
        ("[paths\n", "(at line 1, column 7)"),
    ],
)
def test_errors(tmp_path, text, message):
    (tmp_path / "kdray.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        find_project(tmp_path)
    assert str(error.value).endswith(message)


def test_the_file_of_this_repository_says_the_defaults():
    root = Path(__file__).parents[2]
    project = find_project(root)
    assert project.file == root / "kdray.toml"
    defaults = ProjectFile()
    assert project.data == root / defaults.paths.data
    assert project.runs == root / defaults.paths.runs
    assert project.cache == root / defaults.paths.cache
    assert (project.plugin_paths, project.blocked, project.ray_address) == ((), (), None)
