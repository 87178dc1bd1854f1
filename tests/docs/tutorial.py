"""The code blocks of a page, as files and commands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "writing-a-plugin.md"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S)


def files(page: Path = PAGE) -> dict[str, str]:
    """Name to text of every block that begins with a comment of its file's name."""
    found = {}
    for language, text in blocks(page):
        if language != "bash":
            name = re.match(r"# (\S+\.\w+)\n", text)
            assert name and name[1] not in found, f"this block names no file of its own:\n{text}"
            found[name[1]] = text
    return found


def commands(page: Path = PAGE) -> list[str]:
    return [line for language, text in blocks(page) if language == "bash" for line in text.splitlines()]


def run(command: str, folder: Path) -> str:
    """What it prints. Two workers are this process: the rest is the same, and starting them takes longer."""
    words = shlex.split(command.replace("--num-workers 2", "--num-workers 0"))
    program = {"kdray": [sys.executable, "-m", "kdray"], "python": [sys.executable]}[words[0]]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([*program, *words[1:]], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
