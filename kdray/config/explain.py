"""pydantic's errors in the words of someone who writes a config."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from ..errors import did_you_mean


class Fault(NamedTuple):
    """What is wrong at `path`, the keys that lead to it.

    `about` is what stands there in the file: the "value", the "key" before it, or an "entry" that its section should
    not have, or lacks: then the text names it, and what it concerns is the section.
    """

    path: tuple
    text: str
    about: str = "value"

    @property
    def concerns(self) -> tuple:
        return self.path[:-1] if self.about == "entry" else self.path


_TYPES = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "path_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def show(value) -> str:
    """A value as an error names it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return str(value)


def explain(error: ValidationError, model: type[BaseModel], value: Any, more_keys=()) -> list[Fault]:
    """Every error as a Fault, with the branches of a union told as one.

    `value` is what was validated; `more_keys` are top-level keys that count as known when one is suggested.
    """
    by_path = defaultdict(list)
    for item in error.errors(include_url=False):
        by_path[_path(item, value)].append(item)
    faults = []
    inner = {path[:i] for path in by_path for i in range(len(path))}
    for path, items in by_path.items():
        if path in inner and all(map(_is_type, items)):
            continue  # another branch of the union took the value, and has its own errors further down
        meant = [item for item in items if not _is_type(item)] or items
        if all(map(_is_type, meant)):
            faults.append(Fault(path, _wrong_type(meant, _at(value, path))))
        else:
            faults.append(_fault(path, meant[0], model, _at(value, path), more_keys))
    return faults


def _path(item, value) -> tuple:
    """The keys of the value that an error's location names: pydantic mixes in the branches of unions."""
    path = []
    for part in item["loc"]:
        is_place = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_place or (isinstance(value, dict) and part in value):
            value = value[part]
            path.append(part)
    if item["type"] == "missing":
        path.append(item["loc"][-1])
    if item["type"].startswith("union_tag"):
        path.append(item["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _at(value, path):
    for part in path:
        if isinstance(value, dict) and part not in value:
            return None
        value = value[part]
    return value


def _is_type(item) -> bool:
    return item["type"] in _TYPES or item["type"] in ("literal_error", "enum")


def _wrong_type(items, value) -> str:
    wanted = list(dict.fromkeys(_TYPES.get(item["type"]) or item["ctx"]["expected"] for item in items))
    text = f"must be {' or '.join(wanted)}, not {show(value)}"
    if value is None and "a mapping" in wanted:
        return f"{text} (write {{}} for the defaults)"
    known = [name for expected in wanted for name in re.findall(r"'([^']*)'", expected)]
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    return f"{text}.{near}" if near.startswith(" Did") else text


def _fault(path, item, model, value, more_keys) -> Fault:
    kind, ctx = item["type"], item.get("ctx", {})
    if kind == "missing":
        return Fault(path, f"'{path[-1]}' is missing", "entry")
    if kind == "extra_forbidden":
        known = _keys(model, item["loc"][:-1]) | (set(more_keys) if len(path) == 1 else set())
        return Fault(path, f"unknown key '{path[-1]}'.{did_you_mean(str(path[-1]), known)}", "entry")
    if item["loc"][-1:] == ("[key]",):
        return Fault(path, f"the name '{path[-1]}' must match {ctx.get('pattern', 'another form')}", "entry")
    if kind == "union_tag_not_found":
        return Fault(path, f"'{path[-1]}' is missing", "entry")
    if kind == "union_tag_invalid":
        near = did_you_mean(ctx["tag"], re.findall(r"'([^']*)'", ctx["expected_tags"]))
        return Fault(path, f"must be one of {ctx['expected_tags']}, not {show(value)}.{near if 'Did' in near else ''}")
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return Fault(path, f"must be {words} {ctx[key]:.15g}, not {show(value)}")
    if kind == "string_pattern_mismatch":
        return Fault(path, f"must match {ctx['pattern']}, not {show(value)}")
    if kind == "too_short":
        return Fault(path, f"must have at least {ctx['min_length']} entr{'y' if ctx['min_length'] == 1 else 'ies'}")
    if kind in ("value_error", "assertion_error"):
        return Fault(path, str(ctx["error"]), "key" if isinstance(value, dict) else "value")
    text = item["msg"].replace("Input should be", "must be")
    return Fault(path, f"{text[:1].lower()}{text[1:]}, not {show(value)}")


def _keys(model, loc) -> set[str]:
    """Field names of the model at a location, of all that fit where a union leaves several."""
    models = [model]
    for part in loc:
        inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if inner:
            models = [m for annotation in inner for m in models_in(annotation)]
        else:  # the branch of a union by its class or its tag; else a place in a list or a mapping
            models = [m for m in models if part == m.__name__ or _tagged(m, part)] or models
    return {name for m in models for name in m.model_fields}


def _tagged(model, tag) -> bool:
    return any(tag in get_args(f.annotation) for f in model.model_fields.values())


def models_in(annotation) -> list[type[BaseModel]]:
    """The models that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in get_args(annotation) for m in models_in(inner)]
