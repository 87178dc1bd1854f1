"""YAML as a config wants it: the scalars of YAML 1.2, no tags, no key twice, and the position of every value.

PyYAML alone reads `1e-3` as text, `no` as a boolean, `010` as 8, `1:30` as 90 and lets the last of two equal keys win.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from ..errors import ConfigError

Keys = tuple  # keys and list indices that lead from the root of the document to a value


class Mark(NamedTuple):
    """A position, both numbers from 1."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self):
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Problem(NamedTuple):
    """One thing that is wrong: where it stands, the dotted path of what it concerns, and what it is."""

    mark: Mark
    path: str
    text: str

    def __str__(self):
        return f"{self.mark}: {self.path}: {self.text}" if self.path else f"{self.mark}: {self.text}"


@dataclass
class Document:
    """What a file says. `problems` are those that did not keep the rest from being read."""

    value: Any = None
    keys: dict[Keys, Mark] = field(default_factory=dict)
    values: dict[Keys, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


VALUES, DEPTH = 20_000, 50
"""Most values of a document; most levels of it, or of the key of an override."""

_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}
_CONSTANTS |= {f(k): v for k, v in _CONSTANTS.items() for f in (str.capitalize, str.upper)}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HINTS = {
    r"character '\t'": " (YAML does not indent with tabs: use spaces)",
    "mapping values are not allowed": " (a text that holds ': ' needs quotes)",
    "expected a single document": " (a config is one document: remove the '---')",
}


def scalar(text: str):
    """The value of an unquoted scalar, by the core schema of YAML 1.2. Raises ValueError for a number that is none."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        if len(text) > 30 or not -(2**63) <= (value := int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))) < 2**63:
            raise ValueError("a whole number must fit into 64 bits")
        return value
    if _FLOAT.fullmatch(text):
        value = float(re.sub(r"\.(?=[a-zA-Z])", "", text))
        if not math.isfinite(value):
            raise ValueError("a number must be finite")
        return value
    return text


def is_text(plain: str) -> bool:
    """Whether an unquoted scalar is text."""
    try:
        return isinstance(scalar(plain), str)
    except ValueError:
        return False


def dotted(path: Iterable) -> str:
    return ".".join(str(part) for part in path)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 -- every scalar arrives as text, and `scalar` decides
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, f"tags are not allowed: {event.tag.replace('tag:yaml.org,2002:', '!!')}", event.start_mark
            )
        self.depth += 1
        _check_depth(self.depth, event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _check_depth(depth, at):
    if depth > DEPTH:
        raise yaml.composer.ComposerError(None, None, f"more than {DEPTH} levels of nesting", at.start_mark)


def read(text: str | bytes, file: str, fixed: Mark | None = None) -> Document:
    """Parse one document. `file` names it in errors; with `fixed`, that is the position of everything.

    Raises ConfigError with file:line:column where the text is not YAML.
    """

    def at(line, column):
        return fixed or Mark(file, line + 1, column + 1)

    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        node = _Loader(text).get_single_node()
        return _Reader(at).document(node)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file in UTF-8 (byte {error.start})") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        column = error.position - (text.rfind("\n", 0, error.position) + 1)
        raise ConfigError(f"{at(line, column)}: the character U+{error.character:04X} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = next((hint for part, hint in _HINTS.items() if part in error.problem), "")
        context = f" {error.context}" if error.context and error.context.startswith("while") else ""
        raise ConfigError(f"{at(mark.line, mark.column)}: {error.problem}{context}{hint}") from None


class _Reader:
    """Turns nodes into plain values, and notes where they stand."""

    def __init__(self, at):
        self.at, self.doc, self.open = at, Document(), []

    def document(self, node) -> Document:
        if node is not None:
            self.doc.value = self.value(node, ())
        return self.doc

    def problem(self, node, path, text):
        self.doc.problems.append(Problem(self.at(node.start_mark.line, node.start_mark.column), dotted(path), text))

    def value(self, node, path):
        self.doc.values[path] = self.at(node.start_mark.line, node.start_mark.column)
        if len(self.doc.values) > VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {VALUES:,} values", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path) if node.style is None else self.text(node, path)
        if node in self.open:
            raise yaml.composer.ComposerError(None, None, "an anchor that contains itself", node.start_mark)
        self.open.append(node)
        _check_depth(len(self.open), node)  # aliases nest what was not nested where it stands
        if isinstance(node, yaml.SequenceNode):
            value = [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        else:
            value = self.mapping(node, path)
        self.open.pop()
        return value

    def scalar(self, node, path):
        try:
            return scalar(node.value)
        except ValueError as error:
            self.problem(node, path, f"{error}, not {node.value[:40]}")
            return math.nan

    def text(self, node, path):
        """Quoted. JSON escapes a character beyond U+FFFF as two halves; half a character is none. No name has a NUL."""
        if "\0" in node.value:
            self.problem(node, path, "the character U+0000 is not allowed")
            return ""
        try:
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.problem(node, path, "half a character: an escape from \\ud800 to \\udfff needs its other half")
            return ""

    def mapping(self, node, path):
        found, first = {}, {}
        for key_node, value_node in node.value:
            plain = isinstance(key_node, yaml.ScalarNode)
            if plain and key_node.style is None and key_node.value == "<<":
                self.problem(key_node, path, "merge keys ('<<') are not part of YAML 1.2: use `extends`")
                continue
            if not plain or (key_node.style is None and not is_text(key_node.value)):
                name = f": '{key_node.value}'" if plain else ""
                self.problem(key_node, path, f"a key must be text{name and ', write it in quotes'}{name}")
                continue
            key = self.text(key_node, path)
            here = (*path, key)
            if key in found:
                lines = f"lines {first[key].line + 1} and {key_node.start_mark.line + 1}"
                self.problem(key_node, path, f"the key '{key}' stands twice, in {lines}: remove one")
                continue
            first[key] = key_node.start_mark
            self.doc.keys[here] = self.at(key_node.start_mark.line, key_node.start_mark.column)
            found[key] = self.value(value_node, here)
        return found
