"""The code blocks of a page, as files and commands."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-plugin.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def files() -> dict[str, str]:
    """Name to text of every block that begins with a comment of its file's name."""
    found = {}
    for language, text in BLOCKS:
        if language != "bash":
            name = re.match(r"# (\S+\.\w+)\n", text)
            assert name and name[1] not in found, f"this block names no file of its own:\n{text}"
            found[name[1]] = text
    return found


def commands() -> list[str]:
    return [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
