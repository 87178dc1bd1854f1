"""Configs, overrides, and kdray.toml."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import yaml
from hypothesis import strategies as st

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.registry import Registry

from .damage import JUNK, TEXTS, spoiled_bytes, spoiled_tree
from .judge import MARKER, Target

CONFIGS = Path(__file__).parents[2] / "configs"
RUN = f"!!python/object/apply:os.mkdir [{MARKER}]"
LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'ha'] * 10)}]\n" for i in range(10))
TOKENS = [
    f"\nname: {RUN}\n",
    f"\n- {RUN}\n",
    f"!!python/name:os.mkdir {MARKER}",
    "!!binary aGk=",
    "!!set {a, b}",
    f"\n{LAUGHS}",
    "[" * 3000,
    "\nlosses: " + "[" * 3000 + "]" * 3000,
    "\nseed: " + "[" * 150 + "]" * 150,
    "{a: " * 3000,
    "- " * 3000,
    "&a [*a]",
    "<<: *a",
    "? [a, b]\n: c",
    "\t",
    "---\n",
    "%YAML 1.1\n",
    "\nextends: config.yaml\n",
    "\nextends: other.yaml\n",
    "\nextends: .\n",
    "\nextends: /dev/zero\n",
    '\nextends: "\\0"\n',
    '\nname: "\\0"\n',
    "\nstudent: {model: 'planted:factory'}\n",
    "9" * 5000,
    "1e999",
    "0x" + "f" * 5000,
    ".nan",
    "\0",
    "\ufeff",
    "\u2028",
    "'",
    '"',
    "|\n",
    "\n" + "".join(f"k{i}: {i}\n" for i in range(5_000)),
    "\n" + "".join(f"k{i}: {{a: {{b: [1, 2]}}}}\n" for i in range(5_000)),
    "losses: {" + ", ".join(f"l{i}: {{use: kd, temprature: 1}}" for i in range(2000)) + "}",
]
TOML = b"""[paths]
data = "data"
runs = "runs"
cache = "cache"
[plugins]
load = ["planted.py", "more/"]
block = ["kd"]
[ray]
address = "auto"
"""
TOML_TOKENS = [
    b"[" * 3000,
    b'x = "' + b"a" * 100_000,
    b"[[paths]]\n",
    b"a = " + b"[" * 3000,
    b"a = " + b"{b = " * 3000,
    b"a = 1979-05-27T07:32:00Z\n",
    b"a = " + b"9" * 5000 + b"\n",
    b'runs = "\\u0000"\n',
    b'runs = "~nobody/runs"\n',
    b"a." * 5000 + b"b = 1\n",
    b"\0",
    b"\xff",
    b"[ray]\naddress = 1\n",
]


@cache
def _files() -> list[bytes]:
    """Those that extend files beside them; searches as if they stood there too."""
    found = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("tune/*.yaml")])
    return [path.read_bytes().replace(b"extends: ../", b"extends: ") for path in found]


@cache
def _trees() -> list[dict]:
    return [yaml.safe_load(data) for data in _files()]


def _load(text: bytes, folder: Path, overrides=()) -> None:
    """Beside the configs that it may extend, one that extends it, and a module that leaves a mark if it is imported."""
    if not (folder / "other.yaml").exists():
        for file in CONFIGS.glob("*.yaml"):
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "other.yaml").write_text("extends: config.yaml\n")
        (folder / "planted.py").write_text(f"import os\nos.mkdir({MARKER!r})\n")
    (folder / "config.yaml").write_bytes(text)
    load_config("config.yaml", overrides, registry=Registry.default())


def _read_tree(tree, folder: Path) -> None:
    _load(json.dumps(tree).encode("utf-8", "surrogatepass"), folder)


def _read_overrides(overrides: list[str], folder: Path) -> None:
    _load((CONFIGS / "kd.yaml").read_bytes(), folder, overrides)


def _read_toml(text: bytes, folder: Path) -> None:
    (folder / "kdray.toml").write_bytes(text)
    try:
        find_project(folder)
    finally:
        (folder / "kdray.toml").unlink()


@st.composite
def _overrides(draw) -> list[str]:
    keys = st.sampled_from(
        [
            "name",
            "seed",
            "data.batch_size",
            "data.augment",
            "data.path",
            "losses",
            "losses.kd",
            "losses.kd.temperature",
            "teacher.model",
            "teacher.cache",
            "student.model",
            "schedule.milestones",
            "optimizer.lr",
            "extends",
            "run.dir",
            "a.b.c",
        ]
    )
    values = st.one_of(
        TEXTS, JUNK.map(json.dumps), st.sampled_from([token for token in TOKENS if len(token) < 20_000]), st.text()
    )
    one = st.one_of(
        st.builds("{}={}".format, keys, values), st.text(max_size=30), st.builds("{}={}".format, TEXTS, values)
    )
    return draw(st.lists(one, min_size=1, max_size=3))


TARGETS = [
    Target(
        "config: damaged text",
        st.deferred(lambda: spoiled_bytes(_files(), [token.encode() for token in TOKENS])),
        _load,
        (".yaml", "extends"),
    ),
    Target(
        "config: other values",
        st.deferred(lambda: spoiled_tree(_trees(), most=3)),
        _read_tree,
        (".yaml",),
    ),
    Target("config: overrides", _overrides(), _read_overrides, ("command line", ".yaml")),
    Target("kdray.toml", spoiled_bytes([TOML], TOML_TOKENS), _read_toml, ("kdray.toml",)),
]
