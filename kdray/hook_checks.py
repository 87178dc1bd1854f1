"""What the hooks of a plugin must look like before it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pluggy

from . import hooks
from .errors import PluginError, did_you_mean


def implementations(manager: pluggy.PluginManager, plugin: object) -> dict[str, Callable]:
    """Hook name to function for every function of `plugin` marked `@hookimpl`, after checking names and arguments."""
    if inspect.isclass(plugin):
        raise PluginError(f"the entry point is the class {plugin.__name__}; expected a module or an instance")
    _check_version(plugin)
    known = {name: spec for name, spec in vars(hooks).items() if name.startswith("kdray_")}
    found = {}
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            function = inspect.getattr_static(plugin, attribute, None)
            if attribute.startswith("kdray_") and inspect.isfunction(function):
                raise PluginError(f"{attribute}() is not marked: put @hookimpl above it (from kdray import hookimpl)")
            continue
        name = options.get("specname") or attribute
        if name not in known:
            if options["optionalhook"]:
                continue
            raise PluginError(f"unknown hook {name}().{did_you_mean(name, known)}")
        if options["wrapper"] or options["hookwrapper"]:
            raise PluginError(f"{name}() is a wrapper; kdray has none: no plugin may change another's results")
        function = getattr(plugin, attribute)
        _check_arguments(name, function, list(inspect.signature(known[name]).parameters))
        found[name] = function
    if not found:
        raise PluginError(f"it has no hooks: no function is marked @hookimpl. Known hooks: {', '.join(sorted(known))}.")
    return found


def _check_version(plugin):
    asked = getattr(plugin, "kdray_api", hooks.HOOK_API)
    if asked != hooks.HOOK_API:
        from . import __version__

        remedy = "upgrade kdray" if isinstance(asked, int) and asked > hooks.HOOK_API else "upgrade the plugin"
        raise PluginError(
            f"it is written for hook version {asked!r} (kdray_api), "
            f"kdray {__version__} has hook version {hooks.HOOK_API}: {remedy}"
        )


def _check_arguments(hook, function, allowed):
    may = f"it may take: {', '.join(allowed)}" if allowed else "it takes none"
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PluginError(f"{hook}() must name its arguments, not take {parameter}; {may}")
        if name not in allowed:
            raise PluginError(f"{hook}() has an unknown argument '{name}'; {may}")
