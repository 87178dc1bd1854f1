"""What all plugins provide, by name. A name that two plugins claim belongs to neither."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, PluginError, did_you_mean
from .spec_checks import KINDS

if TYPE_CHECKING:
    from .config.project import Project
    from .loader import Host, PluginInfo
    from .specs import (
        AugmentationSpec,
        CommandSpec,
        DatasetSpec,
        DistillerSpec,
        ModelSpec,
        OptimizerSpec,
        SearchSpaceSpec,
        TrackerSpec,
    )

_SINGULAR = {kind: kind[:-1] for kind in KINDS} | {"datasets": "data set", "search_spaces": "search space"}


class Registry:
    """The specs of all loaded plugins, by kind and name.

    A worker makes its own from what the driver sends, and compares:

        registry = Registry.load(blocked=driver.host.blocked, local_sources=driver.local_sources())
        check_fingerprint(driver.fingerprint(), registry.fingerprint())
    """

    distillers: dict[str, DistillerSpec]
    models: dict[str, ModelSpec]
    datasets: dict[str, DatasetSpec]
    augmentations: dict[str, AugmentationSpec]
    optimizers: dict[str, OptimizerSpec]
    trackers: dict[str, TrackerSpec]
    commands: dict[str, CommandSpec]
    search_spaces: dict[str, SearchSpaceSpec]

    def __init__(self, host: Host):
        self.host = host
        self.owners: dict[tuple[str, str], list[PluginInfo]] = {}
        """(kind, name) to the plugins that define it; more than one is a conflict."""
        for kind in KINDS:
            for info in host.plugins:
                for name in info.specs.get(kind, ()):
                    self.owners.setdefault((kind, name), []).append(info)
            setattr(self, kind, {})
        for (kind, name), owners in sorted(self.owners.items(), key=lambda item: item[0]):
            if len(owners) == 1:
                getattr(self, kind)[name] = owners[0].specs[kind][name]

    @classmethod
    def load(cls, project: Project | None = None, **sources) -> Registry:
        """A registry of its own; the arguments are those of `kdray.loader.load_plugins`."""
        from .loader import load_plugins

        return cls(load_plugins(project, **sources))

    @classmethod
    @cache
    def default(cls) -> Registry:
        """That of this process: installed packages and what the project's kdray.toml names. Loaded once, and then
        names to be blocked that no plugin has are told."""
        from .config.project import find_project

        registry = cls.load(find_project())
        known = {name for info in registry.host.plugins for name in (info.dist, info.name) if name}
        for block in registry.host.idle_blocks:
            hint = did_you_mean(block.removesuffix(".py"), known)  # the name of a local file is without it
            print(f"warning: '{block}' is to be blocked, but no plugin is named so.{hint}", file=sys.stderr)
        return registry

    def get(self, kind: str, name: str, known: Iterable[str] = ()) -> Any:
        """The spec of that name. `kind` is one of `KINDS`; `known` are further names that a slip may have meant.

        Raises PluginError where two plugins claim it or a plugin that may have it is broken, ConfigError for another
        unknown name.
        """
        specs = getattr(self, kind)
        if name in specs:
            return specs[name]
        if (kind, name) in self.owners:
            raise PluginError(self.conflict(kind, name))
        for info in self.host.failed:
            if info.name == name:
                raise PluginError(f"{_SINGULAR[kind]} '{name}': {info.failure}")
        message = f"unknown {_SINGULAR[kind]} '{name}'.{did_you_mean(name, {*specs, *known})}"
        if self.host.failed:
            raise PluginError(f"{message}{self.host.what_failed()}")
        blocked = [info.id for info in self.host.plugins if info.status == "blocked"]
        if blocked:
            message += f"\nIt may belong to a plugin that is blocked: {', '.join(blocked)}."
        raise ConfigError(message)

    def conflict(self, kind: str, name: str) -> str:
        """Why a name that two plugins claim cannot be used, and what to do."""
        owners = self.owners[kind, name]
        return (
            f"{_SINGULAR[kind]} '{name}' is defined by more than one plugin: {' and '.join(map(str, owners))}. "
            f'Block one of them in kdray.toml: [plugins] block = ["{owners[-1].id}"]'
        )

    def conflicts(self) -> list[str]:
        """The message of every name that two plugins claim."""
        return [self.conflict(kind, name) for (kind, name), owners in self.owners.items() if len(owners) > 1]

    def local_sources(self) -> dict[str, str]:
        """The text of every local plugin by name, to be sent to workers."""
        return dict(self.host.local_sources)

    def fingerprint(self) -> list[dict]:
        """Which plugins this process has: name, distribution, version, sha256 of the source; `error` of broken ones."""
        return [
            {
                "name": info.name,
                "distribution": info.dist,
                "version": info.version,
                "sha256": info.sha256,
                "error": info.error,
            }
            for info in self.host.plugins
            if info.status != "blocked"
        ]


def check_fingerprint(driver: list[dict], mine: list[dict]) -> None:
    """Raises PluginError with both sides of every plugin that this process has otherwise than the driver."""
    there, here = ({(p["distribution"], p["name"]): p for p in side} for side in (driver, mine))
    lines = []
    for dist, name in sorted({**there, **here}):
        theirs, ours = there.get((dist, name)), here.get((dist, name))
        if _identity(theirs) != _identity(ours):
            lines += [f"  {dist or 'local'}:{name}", f"    driver: {_side(theirs)}", f"    worker: {_side(ours)}"]
    if lines:
        node = platform.node()
        raise PluginError(
            "\n".join([f"the plugins of the worker on {node} are not those of the driver:", *lines])
            + "\nInstall the same versions on every node."
        )


def _identity(plugin):
    """What must be equal. A plugin that failed to load counts as absent: then it is absent on both sides, or named."""
    return None if plugin is None or plugin["error"] else (plugin["version"], plugin["sha256"])


def _side(plugin):
    if plugin is None:
        return "absent"
    if plugin["error"]:
        return f"failed to load: {plugin['error']}"
    return f"{plugin['distribution']} {plugin['version']} source {plugin['sha256'][:12]}".strip()
