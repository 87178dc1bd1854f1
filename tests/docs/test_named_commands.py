"""Every command that is named in the docs, the configs and the help: its verb and options exist, and its configs."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from kdray.cli.main import app
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").rglob("*.yaml"))]
FENCED, INLINE = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S), re.compile(r"`(kdray [^`\n]+)`")
LINE = re.compile(r"^(?:# )?(?:\.venv/bin/)?(kdray [^\n]+)$", re.M)
OF_A_PLUGIN = {"NAME"}
"""A verb that stands for any."""


def commands() -> list[tuple[Path, str]]:
    found = {}
    for page in PAGES:
        text = page.read_text()
        lines = text if page.suffix == ".yaml" else "".join(FENCED.findall(text))
        for command in [*INLINE.findall(text), *LINE.findall(lines)]:
            words = re.split(r"\s+[#>|]\s|\s{2,}", command)[0].removeprefix("kdray").strip()
            found.setdefault(words, page)
    return [(page, words) for words, page in found.items()]


@pytest.mark.parametrize(("page", "words"), [pytest.param(*each, id=each[1]) for each in commands()])
def test_command(page, words):
    command, rest = typer.main.get_command(app), shlex.split(words)
    while hasattr(command, "list_commands") and rest and not rest[0].startswith("-"):
        verb = rest.pop(0)
        if verb in OF_A_PLUGIN:
            return
        command = command.get_command(command.context_class(command, info_name="kdray"), verb)
        assert command, f"{page.name}: kdray {words}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    for word in rest:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{page.name}: kdray {words}"
        elif word.startswith("configs/"):
            assert (ROOT / word).exists(), f"{page.name}: kdray {words}"
