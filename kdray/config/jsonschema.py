"""The JSON Schema of config files, with the options of every plugin: for completion and checks in an editor.

A file that `extends` another may leave anything out; which keys are required is checked only for files that do not.
"""

from __future__ import annotations

from typing import Any

from ..options import Options
from .schema import Config
from .sections import options_class, summary_of

_NULL = {"type": "null"}


def json_schema(registry) -> dict[str, Any]:
    """Draft 2020-12. What `load_config` takes is valid; an unknown key is not."""
    schema = Config.model_json_schema()
    defs, required = schema["$defs"], {}
    for name, section in schema["properties"].items():
        if "$ref" in section and "required" in (body := defs[section["$ref"].rsplit("/", 1)[1]]):
            required[name] = {"required": body["required"]}
    for body in defs.values():
        body.pop("required", None)
    plugins = _Plugins(registry, defs)

    plugins.open("DataConfig", "name", "datasets")
    plugins.open("OptimizerConfig", "name", "optimizers")
    for name in ("StudentConfig", "TeacherConfig"):
        plugins.open(name, "model", "models")
        model = defs[name]["properties"]["model"]
        factory = {"pattern": ":", "description": "module:factory"}
        model["anyOf"] = [{"enum": model.pop("enum")}, factory]
        own = {"if": {"properties": {"model": factory}, "required": ["model"]}, "then": {"additionalProperties": True}}
        defs[name]["allOf"].append(own)
    defs["Augmentation"], defs["Tracker"] = plugins.entry("augmentations"), plugins.entry("trackers")
    schema["properties"]["trackers"]["items"] = {"$ref": "#/$defs/Tracker"}
    for key in ("augment", "evaluate"):
        defs["DataConfig"]["properties"][key]["items"] = {"$ref": "#/$defs/Augmentation"}
    defs["ExtraView"]["properties"]["augment"]["items"] = {"$ref": "#/$defs/Augmentation"}

    losses = schema["properties"]["losses"]
    losses.pop("patternProperties", None)
    losses["properties"] = plugins.losses()
    losses["additionalProperties"] = {"anyOf": [{"$ref": "#/$defs/LossConfig"}, _NULL]}

    about = "A config that this one changes; relative to this file."
    schema["properties"]["extends"] = {"type": "string", "description": about}
    schema["if"] = {"required": ["extends"]}
    schema["else"] = {"required": schema.pop("required"), "properties": required}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _Plugins:
    """Adds the options of plugins to the definitions of a schema. Each options class stands there once."""

    def __init__(self, registry, defs: dict):
        self.registry, self.defs, self.seen = registry, defs, {}

    def specs(self, kind: str) -> dict:
        return getattr(self.registry, kind)

    def options(self, cls: type[Options]) -> str:
        """The name in `$defs` of an options class."""
        if cls not in self.seen:
            name = f"{cls.__module__}.{cls.__qualname__}".replace("<locals>.", "")
            while name in self.defs:
                name += "_"
            self.seen[cls] = name
            body = cls.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
            body.pop("required", None)
            body.pop("title", None)
            for inner, definition in body.pop("$defs", {}).items():
                self.defs[f"{name}.{inner}"] = definition
            self.defs[name] = body
        return self.seen[cls]

    def properties(self, cls: type[Options], core: dict) -> dict:
        """The options as properties beside those of the core section, which has the say where both have a key."""
        body = self.defs[self.options(cls)]
        return {k: v for k, v in body.get("properties", {}).items() if k not in core}

    def open(self, section: str, by: str, kind: str):
        """Let the keys of an open section depend on the plugin that it names with the key `by`."""
        body, specs = self.defs[section], self.specs(kind)
        core = dict(body["properties"])
        by_class: dict[type[Options], list[str]] = {}
        for name, spec in sorted(specs.items()):
            by_class.setdefault(options_class(spec), []).append(name)
        body["allOf"] = [
            {"if": {"properties": {by: {"enum": names}}, "required": [by]}, "then": {"properties": properties}}
            for cls, names in by_class.items()
            if (properties := self.properties(cls, core))
        ]
        # Without the name (it is inherited, or a default) the options of all are possible.
        every = {key: True for cls in by_class for key in self.properties(cls, core)}
        body["allOf"].append({"if": {"not": _names(by)}, "then": {"properties": every}})
        body["properties"][by] = _enum(core[by], sorted(specs))
        body.pop("additionalProperties", None)
        body["unevaluatedProperties"] = False

    def losses(self) -> dict:
        """`losses` by label: those that are names of distillers need no `use`."""
        self.open("LossConfig", "use", "distillers")
        body = self.defs["LossConfig"]
        labels = {}
        for name, spec in sorted(self.specs("distillers").items()):
            own = self.properties(options_class(spec), body["properties"])
            by_label = {"properties": body["properties"] | own, "additionalProperties": False}
            labels[name] = {
                "description": " ".join(filter(None, [summary_of(spec), getattr(spec.cls, "paper", "")])),
                "if": {"type": "object", **_names("use")},
                "then": {"$ref": "#/$defs/LossConfig"},
                "else": {"type": ["object", "null"], **by_label},
            }
        return labels

    def entry(self, kind: str) -> dict:
        """An entry of a list of plugins: a name, or a name with options."""
        specs = self.specs(kind)
        names = {name: self.options(options_class(spec)) for name, spec in specs.items()}
        options = {name: {"anyOf": [{"$ref": f"#/$defs/{cls}"}, _NULL]} for name, cls in names.items()}
        single = {"type": "object", "minProperties": 1, "maxProperties": 1}
        return {"anyOf": [{"enum": sorted(specs)}, single | {"properties": options, "additionalProperties": False}]}


def _enum(core: dict, names: list[str]) -> dict:
    """A name's own schema, with the names that there are for values."""
    kept = {k: v for k, v in core.items() if k not in ("type", "anyOf")}
    return kept | {"enum": [*names, None] if "anyOf" in core else names}


def _names(by: str) -> dict:
    """Holds where the key `by` names a plugin: it may also be absent or null."""
    return {"properties": {by: {"type": "string"}}, "required": [by]}
