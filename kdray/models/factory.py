"""`module:factory`: any function or class of the user's that returns a network."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from torch import nn

from ..blame import cause
from ..errors import ConfigError, did_you_mean


def call_factory(path: str, options: dict[str, Any], num_classes: int, in_channels: int) -> nn.Module:
    """Import `module:factory` (the working directory included) and call it with `options` as keyword arguments.

    `num_classes` and `in_channels` are passed where the factory names them, `num_classes` also to `**kwargs`.
    What the config gives wins. Raises ConfigError for whatever goes wrong, the user's own exception in it.
    """
    factory = _import(path)
    parameters = inspect.signature(factory).parameters
    names = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any:
        for key in options:
            if key not in names:
                raise ConfigError(f"model {path} takes no argument '{key}'.{did_you_mean(key, names)}")
    arguments = dict(options)
    if takes_any or "num_classes" in names:
        arguments.setdefault("num_classes", num_classes)
    if "in_channels" in names:
        arguments.setdefault("in_channels", in_channels)
    for name in names - set(arguments):
        if parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"model {path} needs the argument '{name}': give it beside `model`.")
    try:
        model = factory(**arguments)
    except Exception as error:
        raise ConfigError(f"model {path} could not be built: {cause(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {path} returned a {type(model).__name__}, not an nn.Module.")
    return model


def _import(path: str):
    name, _, attribute = path.partition(":")
    if not name or not attribute:
        raise ConfigError(f"model '{path}': write it as module:factory.")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"model {path}: there is no module '{error.name}' in {here} or among the packages."
            ) from error
        raise ConfigError(f"model {path}: importing '{name}' failed: {cause(error)}") from error
    except Exception as error:
        raise ConfigError(f"model {path}: importing '{name}' failed: {cause(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        problem = "is not callable" if hasattr(module, attribute) else f"is not in module '{name}'"
        raise ConfigError(f"model {path}: '{attribute}' {problem}.{did_you_mean(attribute, known)}")
    return factory
