"""From a file and overrides to a checked Config: every default filled in, the origin of each value known.

Nothing of the user's is imported and no data is touched. All that is wrong is told in one error.

Relative paths: `extends` and `teacher.train` belong to the file they stand in. `data.path`, `teacher.checkpoint` and
`student.checkpoint` too where they exist there, else to the current directory. `run.dir`, and everything on the command
line, belongs to the current directory. The folder of a run, as a checkpoint, stands for its `student.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from ..errors import ConfigError, PluginError
from . import space
from .dump import annotated_yaml, plain, to_yaml
from .explain import Fault, explain
from .fit import misfits
from .merge import COMMAND_LINE, Tree, merge
from .schema import Config
from .sections import check, filled, lists, sections
from .tune import TuneConfig
from .yaml import Mark, Problem, dotted, read

TOLD = 100
"""Most faults of an error."""

__all__ = ["Loaded", "annotated_yaml", "digest", "load_config", "load_text", "to_yaml"]


@dataclass(frozen=True)
class Loaded:
    """A checked config and where it comes from."""

    config: Config
    """All paths in it are absolute, all options of plugins filled in."""
    origins: dict[str, str]
    """For each leaf, by its dotted path: "file:line:column", "command line" or "default"."""
    text: str
    """The file as it was written."""
    files: tuple[str, ...]
    """The file, and those that it extends, nearest first."""
    given: dict
    """What the files and overrides say, merged, without defaults; all paths in it are absolute."""


def load_config(path: str | os.PathLike, overrides: Iterable[str] = (), registry=None) -> Loaded:
    """Read, merge and check a config. `overrides` are `a.b.c=value`; without `registry`, the installed plugins count.

    Raises ConfigError with a line for each thing that is wrong; PluginError when only broken plugins stand in the way.
    """
    if registry is None:
        from ..registry import Registry

        registry = Registry.default()
    return _resolve(*merge(path, overrides), registry)


def load_text(text: str, name: str, registry) -> Loaded:
    """A config of which only the text is there. `name` stands for its file in errors; paths in it are absolute."""
    tree = Tree(files=[name])
    tree.add(read(text, name))
    return _resolve(tree, text, registry)


def _resolve(tree: Tree, text: str, registry) -> Loaded:
    faults, options, broken = _check(tree.value, registry)
    # A null where none belongs takes an inherited key away. Taking it away may change what else is wrong: look again.
    while removed := {f.path for f in faults} & tree.cleared:
        for gone in removed:
            tree.remove(gone)
        faults, options, broken = _check(tree.value, registry)
    if not faults and tree.value.get("tune"):
        tune = TuneConfig.model_validate(tree.value["tune"])
        faults = list(space.faults(tree.value, tune, lambda value: _check(value, registry)[0]))
    told = {problem.path for problem in tree.problems}
    faults = [fault for fault in faults if dotted(fault.path) not in told]
    problems = tree.problems + [_problem(tree, fault) for fault in faults[:TOLD]]
    if problems:
        order = {file: i for i, file in enumerate(tree.files)}
        problems.sort(key=lambda p: (order.get(p.mark.file, len(order)), p.mark.line, p.mark.column))
        lines = list(dict.fromkeys(map(str, problems)))
        if len(faults) > TOLD:
            lines.append(f"and {len(faults) - TOLD} more")
        raise (PluginError if len(problems) == broken else ConfigError)("\n".join(lines))
    given = tree.value
    of_teachers = [("teachers", name, key) for name in given.get("teachers") or {} for key in ("checkpoint", "train")]
    for at in (*_PATHS, *of_teachers):
        given = _absolute(given, at, tree.values.get(at))
    config = Config.model_validate(_fill(given, options))
    origins = {dotted(p): str(tree.values.get(p, "default")) for p in _leaves(plain(config))}
    return Loaded(config, origins, text, tuple(tree.files), given)


def _check(value: dict, registry):
    """(faults, options of each open section by its path, how many of the faults are a broken plugin's)."""
    faults, options, classes, broken = [], {}, {}, 0
    try:
        Config.model_validate(_without_empty_entries(value))
    except ValidationError as error:
        faults = explain(error, Config, value, ("extends",))
    known = {f.path for f in faults}
    for section in sections(value):
        options[section.path], more, of_plugin = check(section, registry)
        faults += [f for f in more if f.path not in known]
        broken += of_plugin
        if section.kind == "distillers" and section.name in registry.distillers:
            classes[section.path[-1]] = registry.distillers[section.name].cls
    for at, kind, entries in lists(value):
        for i, entry in enumerate(entries):
            if isinstance(entry, dict) and len(entry) != 1:
                faults.append(Fault((*at, i), f"one {kind[:-1]} an entry: a name, or {{name: {{option: value}}}}"))
    known = {f.path for f in faults}
    faults += [f for f in misfits(value, classes) if f.path not in known]
    return faults, options, broken


def _without_empty_entries(value: dict) -> dict:
    """`- crop:` in a list of augmentations or trackers is `crop` with its defaults."""
    for at, _, entries in lists(value):
        kept = [{k: v or {} for k, v in e.items()} if isinstance(e, dict) and len(e) == 1 else e for e in entries]
        value = _put(value, at, kept)
    return value


def _put(value: dict, at: tuple, new) -> dict:
    """A copy of `value` with `new` at the path `at`; what lies beside the path is shared."""
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[at[0]] = _put(value[at[0]], at[1:], new) if at[1:] else new
    return copy


def _problem(tree: Tree, fault: Fault) -> Problem:
    """A fault with its position: of the thing itself, else of the nearest section around it that was written down."""
    notes = tree.values if fault.about == "value" else tree.keys
    mark, at = notes.get(fault.path), fault.path
    while mark is None and at:
        at = at[:-1]
        mark = tree.keys.get(at)
    mark, text = mark or Mark(tree.files[0], 1, 1), fault.text
    if text.startswith("unknown key") and (how := _removal(tree, fault.path)):
        text += f" It is inherited: {how} takes it away."
    return Problem(mark, dotted(fault.concerns), text)


def _removal(tree: Tree, path: tuple) -> str:
    """How to remove a key that is left in a section which an extending file or the command line has changed."""
    layers = [COMMAND_LINE.file, *tree.files]
    section = tree.value
    for part in path[:-1]:
        section = section[part]
    siblings = {tree.keys[at].file for key in section if (at := (*path[:-1], key)) in tree.keys}
    newest = min(siblings, key=layers.index)
    if tree.keys[path].file == newest:
        return ""
    return f"`{dotted(path)}=null`" if newest == COMMAND_LINE.file else f"`{path[-1]}: null` in {newest}"


def _fill(value: dict, options: dict) -> dict:
    """The values with the options of every plugin filled in, those of lists too."""
    for section in sections(value):
        body = filled(section, options[section.path])
        if section.core is None:  # an entry of a list
            *at, name = section.path
            value = _put(value, tuple(at), {name: body})
        else:
            value = _put(value, section.path, body)
    return value


_PATHS = (("data", "path"), ("teacher", "checkpoint"), ("teacher", "train"), ("student", "checkpoint"), ("run", "dir"))


def _absolute(value: dict, at: tuple, mark: Mark | None) -> dict:
    """With one path of the config made absolute. See the top of this file."""
    given = value
    for key in at:
        given = (given or {}).get(key)
    if given is None:
        return value
    given, folder = os.path.expanduser(given), ""
    if mark != COMMAND_LINE and at[0] != "run":
        folder = os.path.dirname(mark.file)
        if at[-1] != "train" and not os.path.exists(os.path.join(folder, given)):
            folder = ""
    found = os.path.abspath(os.path.join(folder, given))
    if at[-1] == "checkpoint" and os.path.isfile(of_run := os.path.join(found, "student.safetensors")):
        found = of_run
    return _put(value, at, found)


def _leaves(value, path=()):
    if not isinstance(value, dict) or not value:
        return [path]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]


def _without_places(teacher: dict | None) -> None:
    """Keep of a teacher's cache what its numbers depend on; nothing where there is none."""
    if teacher and teacher["cache"]:
        teacher["cache"] = {key: teacher["cache"][key] for key in ("dtype", "top_k")}
    for key in ("cache", "precision"):
        if teacher and teacher[key] is None:
            del teacher[key]


def _without_source(network: dict | None) -> None:
    """Of a pruned network its weights count, not the file that they are in; nothing of what is not asked for."""
    for key in ("prune", "pruned", "int8"):
        if network and key in network and not network[key]:
            del network[key]  # the digest of a run from before there was one
    if network and (pruned := network.get("pruned")):
        del pruned["source"]
        if pruned["weights"]:
            del network["checkpoint"]


def digest(config: Config) -> str:
    """sha256, in hex, of what determines the result of a run.

    Left out is what may change between a run and its resumption: names, workers, trackers, the pace of checkpoints and
    logs, what is done about losses that are no numbers, where and how the data is read (its content has a fingerprint
    of its own), whether a baseline is trained beside, and what a search would try.
    """
    apart = {"name", "run", "scale", "checkpoint", "trackers", "baseline", "tune"}
    value = config.model_dump(mode="json", exclude=apart)
    for section, key in (
        *(("data", "path"), ("data", "in_memory"), ("data", "threads")),
        *(("engine", "log_every"), ("engine", "nonfinite")),
    ):
        del value[section][key]
    for teacher in (value["teacher"], *value["teachers"].values()):
        _without_places(teacher)
    for network in (value["student"], value["teacher"], *value["teachers"].values()):
        _without_source(network)
    for key in ("mix", "leave_out", "label_noise"):
        if not value["data"][key]:
            del value["data"][key]  # the digest of a run from before there was one
    for loss in value["losses"].values():
        if isinstance(negatives := loss.get("negatives"), dict) and negatives.get("dtype") == "fp32":
            del negatives["dtype"]  # likewise
    value["losses"] = list(value["losses"].items())  # their order is the order of a sum
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
