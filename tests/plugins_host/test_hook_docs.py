"""docs/hooks.md is the docstrings of kdray/hooks.py. `python tests/plugins_host/test_hook_docs.py` writes it anew."""

import inspect
import re
from pathlib import Path

import pytest

from kdray import hooks
from kdray.loader import load_plugins

PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"
HOOKS = {name: spec for name, spec in vars(hooks).items() if name.startswith("kdray_")}


def section(name):
    return f"## {name}({', '.join(inspect.signature(HOOKS[name]).parameters)})\n\n{inspect.getdoc(HOOKS[name])}\n"


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name):
    assert section(name) in PAGE.read_text(), __doc__
    assert "Runs on" in section(name)


def test_no_other_hook_is_documented():
    assert re.findall(r"^## (kdray_\w+)", PAGE.read_text(), re.M) == list(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_example_is_a_plugin(name, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", section(name), re.S)
    (tmp_path / "example.py").write_text(example)
    info = load_plugins(paths=[tmp_path / "example.py"]).plugins[-1]
    assert (info.status, info.error, info.hooks) == ("loaded", "", [name])


if __name__ == "__main__":
    head = PAGE.read_text().split("\n## kdray_")[0]
    PAGE.write_text(head + "\n" + "\n".join(map(section, HOOKS)))
