"""From own pictures to a shipped student, done from the page: every file is written, every command runs."""

import json

import pytest
from tutorial import DOCS, commands, files, run

PAGE = DOCS / "tutorial.md"
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tutorial")
    for name, text in files(PAGE).items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("command", commands(PAGE))
def test_command(command, folder):
    """In the order of the page: each may need what those before it left behind."""
    run(command, folder)


def test_what_it_came_to(folder):
    assert len(list((folder / "pictures").rglob("*.png"))) == 1797
    summary = json.loads((folder / "runs" / "student" / "summary.json").read_text())
    assert summary["teacher"]["top1"] > 0.9
    assert summary["last"]["top1"] > summary["alone"]["last"]["top1"]  # by ten points, where it was looked at
    assert (folder / "report" / "report.html").exists()
    assert (folder / "runs" / "student" / "export" / "student.onnx").exists()
