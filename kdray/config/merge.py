"""One tree of values out of a file, the files it extends, and the overrides of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, did_you_mean
from .yaml import DEPTH, Document, Keys, Mark, Problem, dotted, read

COMMAND_LINE = Mark("command line")
LARGEST = 1_000_000
"""Most bytes of a config; a file of another kind may have no end."""


@dataclass
class Tree:
    """Merged values and where each came from. `cleared`: paths where a null has replaced an inherited value."""

    value: dict = field(default_factory=dict)
    keys: dict[Keys, Mark] = field(default_factory=dict)
    values: dict[Keys, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    cleared: set[Keys] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    """The config first, then what it extends, nearest first."""

    def add(self, doc: Document):
        """Lay a document over the tree: mappings merge, everything else is replaced."""
        self.problems += doc.problems
        self._merge(self.value, doc.value, (), doc)

    def _merge(self, into: dict, new: dict, path: tuple, doc: Document):
        for key, value in new.items():
            here, old = (*path, key), into.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                if doc.keys[here] != COMMAND_LINE:  # an override inside a section does not move the section
                    self.keys[here], self.values[here] = doc.keys[here], doc.values[here]
                self._merge(old, value, here, doc)
                continue
            was_cleared = here in self.cleared
            self.forget(here, old)
            if value is None and (old is not None or was_cleared):
                self.cleared.add(here)
            into[key] = value
            for p in _paths(here, value):
                for mine, theirs in ((self.keys, doc.keys), (self.values, doc.values)):
                    if p in theirs:
                        mine[p] = theirs[p]

    def forget(self, path: tuple, value):
        """Drop what is noted of a path, where `value` stood, and of all below it."""
        for p in _paths(path, value):
            self.keys.pop(p, None)
            self.values.pop(p, None)
            self.cleared.discard(p)

    def remove(self, path: tuple):
        inner = self.value
        for part in path[:-1]:
            inner = inner[part]
        self.forget(path, inner.pop(path[-1]))


def _paths(path: tuple, value) -> Iterator[tuple]:
    """A path and all below it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths((*path, key), inner)


def merge(path: str | os.PathLike, overrides) -> tuple[Tree, str]:
    """The tree of a config, and the text of its file. Raises ConfigError for what cannot be read at all."""
    tree, chain, text = Tree(), [], ""
    label, asked_by = os.path.normpath(path), None
    while label:
        raw, doc = _read_file(label, asked_by)
        text = text or raw
        if any(os.path.samefile(label, seen) for seen in tree.files):
            raise ConfigError(f"{asked_by}: extends: a circle: {' -> '.join([*tree.files, label])}")
        tree.files.append(label)
        chain.append(doc)
        label, asked_by = _base(doc, label)
    for doc in reversed(chain):
        tree.add(doc)
    for override in overrides:
        try:
            tree.add(_override(override, tree))
        except ConfigError as error:
            tree.problems.append(Problem(COMMAND_LINE, "", str(error).removeprefix(f"{COMMAND_LINE}: ")))
    return tree, text


def _read_file(label: str, asked_by: Mark | None) -> tuple[str, Document]:
    where = f"{asked_by}: extends: " if asked_by else ""
    try:
        with open(label, "rb") as file:
            raw = file.read(LARGEST + 1)
    except FileNotFoundError:
        folder = Path(label).parent
        near = did_you_mean(Path(label).name, [p.name for p in folder.glob("*.y*ml")]) if folder.is_dir() else ""
        raise ConfigError(f"{where}there is no file {label}.{near}") from None
    except OSError as error:
        raise ConfigError(f"{where}cannot read {label}: {error.strerror}") from None
    if len(raw) > LARGEST:
        raise ConfigError(f"{where}{label} is longer than {LARGEST:,} bytes, which no config is")
    doc = read(raw, label)
    if doc.value is None and not doc.problems:
        raise ConfigError(f"{label}: the file is empty: a config needs at least name, data, student, losses and so on")
    if not isinstance(doc.value, dict):
        raise ConfigError(f"{doc.values[()]}: a config is a mapping of keys to values")
    return raw.decode("utf-8-sig"), doc


def _base(doc: Document, label: str) -> tuple[str | None, Mark | None]:
    """Takes `extends` out of a document: the file it names, relative to this one, and where it says so."""
    if "extends" not in doc.value:
        return None, None
    name, mark = doc.value.pop("extends"), doc.values[("extends",)]
    if not isinstance(name, str):
        raise ConfigError(f"{mark}: extends: must be the name of one file")
    return os.path.normpath(os.path.join(os.path.dirname(label), os.path.expanduser(name))), mark


def _override(override: str, tree: Tree) -> Document:
    """`a.b.c=value` as a document of its own."""
    name, equals, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not override.isascii():
        try:
            override.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{override!a} is not text in UTF-8") from None
    if not equals or not all(path) or len(path) > DEPTH:
        raise ConfigError(f"'{override}' is not an override: write section.key=value, as in data.batch_size=256")
    if path[0] == "extends":
        raise ConfigError(f"'{override}': extends belongs in a file")
    inner = tree.value
    for i, part in enumerate(path):
        if isinstance(inner, list):
            whole = dotted(path[:i])
            raise ConfigError(f"'{override}': {whole} is a list, which is replaced as a whole: {whole}=[...]")
        inner = inner.get(part) if isinstance(inner, dict) else None
    try:
        given = read(text, str(COMMAND_LINE), fixed=COMMAND_LINE)
    except ConfigError as error:
        raise ConfigError(f"'{override}': {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from None
    doc = Document(given.value)
    doc.problems = [p._replace(path=dotted([*path, *([p.path] if p.path else [])])) for p in given.problems]
    for parts, notes in ((given.keys, doc.keys), (given.values, doc.values)):
        notes.update({(*path, *p): COMMAND_LINE for p in parts})
    for i in range(len(path), 0, -1):
        doc.value = {path[i - 1]: doc.value}
        doc.keys[path[:i]] = doc.values[path[:i]] = COMMAND_LINE
    return doc
