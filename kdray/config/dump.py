"""A resolved config as YAML again: valid as input, and with the origin of each value beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import yaml

from .schema import Config
from .yaml import dotted, is_text, read

if TYPE_CHECKING:
    from .load import Loaded


def to_yaml(config: Config) -> str:
    """A resolved config as YAML that loads as the same config."""
    return write(plain(config))


def plain(config: Config) -> dict:
    """A resolved config as plain values."""
    value = config.model_dump(mode="json")
    if value["tune"] is None:
        del value["tune"]  # most configs say nothing of a search
    return value


def annotated_yaml(loaded: Loaded) -> str:
    """The resolved config as YAML, with the origin of each value in a comment."""
    text = to_yaml(loaded.config)
    lines = text.splitlines()
    for path, mark in read(text, "").keys.items():
        if origin := loaded.origins.get(dotted(path)):
            lines[mark.line - 1] = f"{lines[mark.line - 1]:<48}  # {origin}"
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Writes what `read` reads back as the same values: sections in blocks, plain lists on one line."""

    def ignore_aliases(self, data):
        return True

    def resolve(self, kind, value, implicit):
        if kind is yaml.ScalarNode and implicit[0] and not is_text(value):
            # Numbers of 1.2 that PyYAML's 1.1 rules take for text: anything but the text tag makes it write quotes.
            return super().resolve(kind, value, implicit).replace(":str", ":float")
        return super().resolve(kind, value, implicit)


def _text(dumper, value):
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, '"' if "\n" in value else None)


def _list(dumper, value):
    flat = not any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def write(value) -> str:
    """Plain values as YAML, every leaf of a mapping on a line of its own."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
