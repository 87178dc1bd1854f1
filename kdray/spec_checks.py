"""What the specs of a plugin must be like. Every failure says what was expected, so that it need not wait for a run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from pydantic import ValidationError

from . import specs
from .config import schema
from .config.explain import explain
from .config.sections import options_class
from .config.tune import Dimension
from .config.yaml import dotted
from .errors import PluginError
from .options import Options

KINDS = {
    "distillers": specs.DistillerSpec,
    "models": specs.ModelSpec,
    "datasets": specs.DatasetSpec,
    "augmentations": specs.AugmentationSpec,
    "optimizers": specs.OptimizerSpec,
    "trackers": specs.TrackerSpec,
    "commands": specs.CommandSpec,
    "search_spaces": specs.SearchSpaceSpec,
}
"""Kind to type of spec; the hook of a kind is `kdray_<kind>`."""

# Keys of a config's section that belong to kdray itself, so that a plugin's option of that name would never be reached.
_RESERVED = {
    "distillers": set(schema.LossConfig.model_fields),
    "models": set(schema.TeacherConfig.model_fields),
    "datasets": set(schema.DataConfig.model_fields),
    "augmentations": set(),
    "optimizers": {"name"},
    "trackers": set(),
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


def collect(kind: str, function: Callable) -> dict[str, object]:
    """The specs that one plugin's registration hook returns, by name, each of them checked."""
    hook, expected, found = f"kdray_{kind}", KINDS[kind], {}
    returned = function()
    if returned is None:
        raise PluginError(f"{hook}() returned nothing; expected a list of {expected.__name__}")
    for spec in [returned] if isinstance(returned, expected) else returned:
        if not isinstance(spec, expected):
            raise PluginError(f"{hook}() returned {spec!r}; expected {expected.__name__}")
        if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
            raise PluginError(f"{hook}() returned the name {spec.name!r}; expected letters, digits and any of _ - . /")
        if spec.name in found:
            raise PluginError(f"{hook}() returned two specs of the name '{spec.name}'")
        _CHECKS[kind](spec)
        found[spec.name] = spec
    return found


def _check_options(kind, spec, where):
    options = options_class(spec)
    if not (inspect.isclass(options) and issubclass(options, Options)):
        raise PluginError(f"{where}: Options is {options!r}; expected a subclass of kdray.Options")
    for name, field in options.model_fields.items():
        if not field.description:
            raise PluginError(f"{where}: option '{name}' has no description; expected Field(…, description='…')")
        if name in _RESERVED[kind]:
            raise PluginError(f"{where}: option '{name}' is a key of kdray itself in that section; rename it")


def _check_parameters(where, function, expected):
    names = list(inspect.signature(function).parameters)
    if names != expected:
        raise PluginError(f"{where} has the arguments ({', '.join(names)}); expected ({', '.join(expected)})")


def _check_call(where, function, *positional, **named):
    """Whether `function` can be called with arguments of these names."""
    expected = ", ".join([*positional, *(f"{name}=…" for name in named)])
    if not callable(function):
        raise PluginError(f"{where} is {function!r}; expected a function ({expected})")
    try:
        inspect.signature(function).bind(*positional, **named)
    except TypeError as error:
        raise PluginError(f"{where}{inspect.signature(function)} cannot be called as ({expected}): {error}") from None


def _check_class(where, cls, base):
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise PluginError(f"{where}: {cls!r} is not a subclass of kdray.{base.__name__}")


def _check_distiller(spec):
    from .distiller import Distiller, Requires

    where = f"distiller '{spec.name}'"
    _check_class(where, spec.cls, Distiller)
    if spec.cls.forward is Distiller.forward:
        raise PluginError(f"{where}: {spec.cls.__name__} has no forward(self, student, teacher, batch, step)")
    for method, expected in (
        ("__init__", ["self", "options", "setup"]),
        ("forward", ["self", "student", "teacher", "batch", "step"]),
        ("prepare", ["self", "teacher", "batch", "step"]),
        ("after_backward", ["self", "batch", "step"]),
        ("stages", ["self"]),
        ("deployed", ["self", "student"]),
    ):
        _check_parameters(f"{where}: {spec.cls.__name__}.{method}", getattr(spec.cls, method), expected)
    if not isinstance(spec.cls.requires, Requires):
        raise PluginError(f"{where}: requires is {spec.cls.requires!r}; expected kdray.Requires(student=…, teacher=…)")
    _check_options("distillers", spec, where)


def _check_model(spec):
    where = f"model '{spec.name}'"
    _check_call(f"{where}: build", spec.build, num_classes=10, in_channels=3, weights=None, options=None)
    if not isinstance(spec.layers, specs.Layers):
        raise PluginError(f"{where}: layers is {spec.layers!r}; expected kdray.Layers(…)")
    _check_options("models", spec, where)


def _check_dataset(spec):
    where = f"data set '{spec.name}'"
    _check_call(f"{where}: load", spec.load, "options", "path", "split")
    _check_options("datasets", spec, where)


def _check_augmentation(spec):
    from .data.augment import Augmentation

    where = f"augmentation '{spec.name}'"
    _check_class(where, spec.cls, Augmentation)
    _check_parameters(f"{where}: {spec.cls.__name__}.__init__", spec.cls.__init__, ["self", "options"])
    _check_call(f"{where}: {spec.cls.__name__}.__call__", spec.cls.__call__, "self", "images", "u")
    _check_options("augmentations", spec, where)


def _check_optimizer(spec):
    where = f"optimizer '{spec.name}'"
    _check_call(f"{where}: build", spec.build, "parameters", "options")
    _check_options("optimizers", spec, where)
    if "lr" not in spec.Options.model_fields:
        raise PluginError(f"{where}: its Options have no 'lr', the base learning rate")


def _check_tracker(spec):
    from .tracker import Tracker

    where = f"tracker '{spec.name}'"
    _check_class(where, spec.cls, Tracker)
    if spec.cls.row is Tracker.row:
        raise PluginError(f"{where}: {spec.cls.__name__} has no row(self, row)")
    for method, expected in (
        ("__init__", ["self", "options", "run"]),
        ("check", ["options"]),
        ("row", ["self", "row"]),
        ("close", ["self", "state"]),
    ):
        _check_parameters(f"{where}: {spec.cls.__name__}.{method}", getattr(spec.cls, method), expected)
    _check_options("trackers", spec, where)


def _check_command(spec):
    from .cli.main import VERBS
    from .cli.verbs import command

    where = f"command '{spec.name}'"
    if spec.name in VERBS:
        raise PluginError(f"{where}: kdray has a verb of this name itself; rename the command")
    if not callable(spec.function):
        raise PluginError(f"{where}: {spec.function!r} is not a function")
    try:
        made = command(spec)
    except Exception as error:
        raise PluginError(f"{where}: its arguments cannot be read from a command line: {error}") from error
    if not made.help:
        raise PluginError(f"{where} has no help; expected CommandSpec(…, help='…') or a docstring")


def _check_search_space(spec):
    where = f"search space '{spec.name}'"
    if not isinstance(spec.space, dict) or not spec.space:
        raise PluginError(f"{where}: {spec.space!r} is not a mapping of options to how they are drawn")
    for option, how in spec.space.items():
        try:
            kind = Dimension.model_validate(how).kind
        except ValidationError as error:
            faults = explain(error, Dimension, how)
            texts = "; ".join(dotted(f.path) + f": {f.text}" if f.path else f.text for f in faults)
            raise PluginError(f"{where}: {option}: {texts}") from None
        if kind == "grid" or "when" in how:
            raise PluginError(f"{where}: {option}: neither grid nor when: not every searcher has them")


_CHECKS = {
    "distillers": _check_distiller,
    "models": _check_model,
    "datasets": _check_dataset,
    "augmentations": _check_augmentation,
    "optimizers": _check_optimizer,
    "trackers": _check_tracker,
    "commands": _check_command,
    "search_spaces": _check_search_space,
}
