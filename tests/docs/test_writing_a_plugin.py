"""The page on plugins, done from its text: every file is written, every command runs."""

import re
from pathlib import Path

import pytest
from tutorial import PAGE, commands, files, run

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    for name, text in files().items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("command", commands())
def test_command(command, folder):
    """In the order of the page: each may need what those before it left behind."""
    said = run(command, folder)
    assert "rowsim" in said or "row-similarity" in said or "passed" in said or "valid" in said


def test_the_run_is_there(folder):
    assert (folder / "runs" / "rowsim" / "student.safetensors").exists()
    assert '"rowsim"' in (folder / "runs" / "rowsim" / "metrics.jsonl").read_text()


def test_the_loss_has_forty_lines():
    lines = [line for line in files()["rowsim.py"].splitlines()[1:] if line.strip()]
    assert len(lines) <= 40


def test_the_line_of_the_moving_option_is_valid(folder):
    (line,) = re.findall(r"`(rowsim: \{.*schedule.*\})`", PAGE.read_text())
    text = re.sub(r"rowsim: \{.*\}", line, files()["rowsim.yaml"])
    assert line in text
    (folder / "moving.yaml").write_text(text)
    run("kdray validate moving.yaml", folder)
