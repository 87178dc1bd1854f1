"""The open sections of a config: which plugin each belongs to, and what that plugin says of its options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from ..errors import ConfigError, PluginError, did_you_mean
from ..options import Options
from ..specs import DistillerSpec
from .explain import Fault, explain
from .schema import DataConfig, LossConfig, OptimizerConfig, StudentConfig, TeacherConfig


class Section(NamedTuple):
    """A mapping in a config whose further keys are the options of a plugin."""

    path: tuple
    kind: str
    name: str
    named: Fault
    """Where the plugin is named, for the error when there is none of that name."""
    body: dict
    core: type[BaseModel] | None

    @property
    def core_keys(self) -> set[str]:
        return set(self.core.model_fields) if self.core else set()

    def given(self, cls: type[Options]) -> dict:
        """What the config says of the options: the plugin's keys, and the optimizer's lr, which is also the core's."""
        shared = {"lr"} if self.kind == "optimizers" and "lr" in cls.model_fields else set()
        return {k: v for k, v in self.body.items() if k not in self.core_keys or k in shared}


def options_class(spec) -> type[Options]:
    """The options of any spec: its own, else those of its class."""
    return spec.Options if hasattr(spec, "Options") else spec.cls.Options


def summary_of(spec) -> str:
    """One line about any spec: its own words, else the first line of a docstring: its class's; a loss's module's."""
    text = getattr(spec, "summary", "") or getattr(spec, "help", "")
    if not text and isinstance(spec, DistillerSpec):
        text = getattr(sys.modules.get(spec.cls.__module__), "__doc__", "") or spec.cls.__doc__
    elif not text:
        text = (spec.cls if hasattr(spec, "cls") else spec.function).__doc__
    return (text or "").strip().split("\n")[0]


def parse_options(cls: type[Options], values: dict) -> Options:
    """Options out of YAML's plain values: strict, but a list may stand for a tuple and text for a path, as in JSON."""
    return cls.model_validate_json(to_json(values))


def sections(value: dict) -> Iterator[Section]:
    """The open sections of a config that are well formed enough to look at. Sections without plugin are left out."""
    for key, kind, by, core in (
        ("data", "datasets", "name", DataConfig),
        ("teacher", "models", "model", TeacherConfig),
        ("student", "models", "model", StudentConfig),
        ("optimizer", "optimizers", "name", OptimizerConfig),
    ):
        body = value.get(key)
        if isinstance(body, dict):
            name = body.get(by, core.model_fields[by].get_default())
            if isinstance(name, str) and not (kind == "models" and ":" in name):
                yield Section((key,), kind, name, Fault((key, by), ""), body, core)
    teachers = value.get("teachers")
    for label, body in teachers.items() if isinstance(teachers, dict) else ():
        if isinstance(body, dict) and isinstance(name := body.get("model"), str) and ":" not in name:
            yield Section(
                ("teachers", label), "models", name, Fault(("teachers", label, "model"), ""), body, TeacherConfig
            )
    losses = value.get("losses")
    for label, body in losses.items() if isinstance(losses, dict) else ():
        if isinstance(body, dict):
            name = body.get("use") or label
            named = Fault(("losses", label, "use"), "") if body.get("use") else Fault(("losses", label), "", "key")
            if isinstance(name, str):
                yield Section(("losses", label), "distillers", name, named, body, LossConfig)
    for at, kind, entries in lists(value):
        for i, entry in enumerate(entries):
            if isinstance(entry, str):
                yield Section((*at, i, entry), kind, entry, Fault((*at, i), ""), {}, None)
            elif isinstance(entry, dict) and len(entry) == 1:
                ((name, body),) = entry.items()
                if body is None or isinstance(body, dict):
                    named = Fault((*at, i, name), "", "key")
                    yield Section((*at, i, name), kind, name, named, body or {}, None)


def lists(value: dict) -> Iterator[tuple[tuple, str, list]]:
    """Path, kind and entries of every list of plugins in a config that is well formed enough to look at: trackers and
    augmentations."""
    if isinstance(trackers := value.get("trackers"), list):
        yield ("trackers",), "trackers", trackers
    data = value.get("data")
    if not isinstance(data, dict):
        return
    views = data.get("extra_views")
    places = [((key,), data) for key in ("augment", "evaluate")]
    for name, view in views.items() if isinstance(views, dict) else ():
        if isinstance(view, dict):
            places.append((("extra_views", name, "augment"), view))
    for path, holder in places:
        if isinstance(entries := holder.get(path[-1]), list):
            yield ("data", *path), "augmentations", entries


def check(section: Section, registry) -> tuple[Options | None, list[Fault], bool]:
    """The section's options, or what is wrong with them; and whether a plugin is at fault rather than the config."""
    try:
        spec = registry.get(section.kind, section.name)
    except (ConfigError, PluginError) as error:
        text = str(error).replace("\n", " ")
        return None, [section.named._replace(text=text)], isinstance(error, PluginError)
    faults, cls = [], options_class(spec)
    weights = section.body.get("weights") if section.kind == "models" else None
    if isinstance(weights, str) and spec.weights and weights not in (*spec.weights, "DEFAULT"):
        text = f"{section.name} has no weights '{weights}'.{did_you_mean(weights, {*spec.weights, 'DEFAULT'})}"
        faults.append(Fault((*section.path, "weights"), text))
    given = section.given(cls)
    try:
        options = parse_options(cls, given)
        if section.kind == "distillers":
            faults += _of_schedule(section, spec.cls, options)
        return options, faults, False
    except ValidationError as error:
        for fault in explain(error, cls, given, section.core_keys):
            faults.append(fault._replace(path=(*section.path, *fault.path)))
        return None, faults, False


def _of_schedule(section: Section, cls, options: Options) -> Iterator[Fault]:
    """What is wrong with `schedule:` of a loss: options that cannot move, and ends that the option itself refuses."""
    schedule = section.body.get("schedule")
    for key, moves in schedule.items() if isinstance(schedule, dict) else ():
        at = (*section.path, "schedule", key)
        if key not in cls.scheduled:
            if key == "weight":
                yield Fault(at, "a weight that moves is written as `weight: {value: 1.0, warmup: 20}`.", "key")
                continue
            may = f"those that can: {', '.join(sorted(cls.scheduled))}" if cls.scheduled else "none of its options can"
            yield Fault(at, f"{section.name} has no option '{key}' that may move over the epochs; {may}.", "key")
            continue
        for edge in ("start", "end"):
            value = moves.get(edge) if isinstance(moves, dict) else None
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    parse_options(cls.Options, options.model_dump(mode="json") | {key: value})
                except ValidationError as error:
                    for fault in explain(error, cls.Options, options.model_dump(mode="json") | {key: value}):
                        yield Fault((*at, edge), fault.text)


def filled(section: Section, options: Options) -> dict[str, Any]:
    """The section's body with every option of the plugin in it."""
    body = {k: v for k, v in section.body.items() if k in section.core_keys}
    return body | {k: v for k, v in options.model_dump().items() if k not in section.core_keys}
