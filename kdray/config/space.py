"""Whether the values that a search may try are values of its config: each is put there, and looked at as any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from .explain import Fault
from .tune import Dimension, TuneConfig
from .yaml import dotted

_FIXED = {
    "name": "it names a folder",
    "run": "it names folders",
    "tune": "it is the search itself",
    "scale": "workers change the speed, not the result: write tune.trial_workers",
    "trackers": "trials have none",
    "checkpoint": "it does not change the result",
    "baseline": "it belongs to no trial",
    "data.validation": "trials are compared on this split",
}
_OF_PBT = ("optimizer.", "losses.", "engine.clip_norm")


def put(value: dict, values: dict[str, Any]) -> dict:
    """A copy of a config's plain values with others in place of those at dotted paths; missing sections are made."""
    for path, new in sorted(values.items(), key=lambda entry: entry[0].count(".")):  # a section before what is in it
        value = _put(value, path.split("."), new)
    return value


def _put(value, keys: list[str], new):
    if not keys:
        return new
    return {**(value or {}), keys[0]: _put((value or {}).get(keys[0]), keys[1:], new)}


def decode(tune: TuneConfig, drawn: dict[str, Any]) -> dict[str, Any]:
    """The values of a config by dotted path, of what a searcher has drawn: `choice` and `grid` as JSON."""
    return {p: json.loads(v) if tune.space[p].is_discrete else v for p, v in drawn.items()}


def faults(value: dict, tune: TuneConfig, check: Callable[[dict], list[Fault]]) -> Iterator[Fault]:
    """What is wrong with a space. value: the config's plain values, in which nothing else is wrong; check: what is
    wrong with such values."""
    above: dict[str, Dimension] = {}
    for path, dimension in tune.space.items():
        at = ("tune", "space", path)
        misplaced = _misplaced(value, path, dimension, tune, above)
        if misplaced:
            yield Fault(at, misplaced, "key")
        else:
            yield from _of_values(value, at, dimension, check)
        above[path] = dimension


def _misplaced(value: dict, path: str, dimension: Dimension, tune: TuneConfig, above: dict[str, Dimension]) -> str:
    """Why there can be no such entry; "" where there can."""
    for fixed, why in _FIXED.items():
        if path == fixed or path.startswith(f"{fixed}."):
            return f"{fixed} cannot be searched: {why}."
    inner = value
    for i, key in enumerate(keys := path.split(".")):
        if not key:
            return "not a dotted path: write section.key, as in optimizer.lr."
        if isinstance(inner, list):
            whole = dotted(keys[:i])
            return f"{whole} is a list, of which a whole is drawn: `{whole}: {{choice: [[…], […]]}}`."
        inner = inner.get(key) if isinstance(inner, dict) else None
    if (tune.searcher == "grid") != (dimension.kind == "grid"):
        if tune.searcher == "grid":
            return f"searcher: grid goes through values: write `grid: […]`, not {dimension.kind}."
        return f"grid belongs to searcher: grid; for {tune.searcher} write `choice: […]`."
    if dimension.when and tune.searcher != "optuna":
        return f"`when` needs searcher: optuna; {tune.searcher} has no conditions."
    for other, wanted in dimension.when.items():
        if other not in above or above[other].kind != "choice" or wanted not in above[other].values:
            return f"when: {other} must be a `choice` above this entry that may be {json.dumps(wanted)}."
    settled = path == "optimizer.name" or path.rpartition(".")[2] in ("use", "teacher")
    if tune.searcher == "pbt" and (settled or not path.startswith(_OF_PBT)):
        return "searcher: pbt changes values of a trial that has begun: losses, optimizer options, engine.clip_norm."
    return ""


def _of_values(value: dict, at: tuple, dimension: Dimension, check) -> Iterator[Fault]:
    path = tuple(at[-1].split("."))
    for i, tried in enumerate(dimension.values):
        for fault in check(put(value, {at[-1]: tried, **dimension.when})):
            if fault.path == path and fault.about != "value":  # the path itself is unknown, whatever is put there
                yield Fault(at, fault.text, "key")
                return
            where = "" if fault.path == path else f"{dotted(fault.path)}: "
            yield Fault((*at, dimension.kind, i), where + fault.text)
            break
