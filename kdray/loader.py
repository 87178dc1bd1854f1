"""Finds plugins, imports, checks and registers them one by one. A broken one is recorded, and the others go on.

pluggy's own entry-point loader is not used: it dies of one broken package, and skips the second of two equal names.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pluggy

from . import __version__, hooks
from .blame import cause
from .errors import KdrayError, PluginError
from .hook_checks import implementations
from .plugin_sources import canonical, distributions, import_text, local_files, locate
from .spec_checks import KINDS, collect

if TYPE_CHECKING:
    from .config.project import Project

BUILTIN = ("kdray.models.builtin", "kdray.data.builtin", "kdray.engine.optimizers", "kdray.run.trackers")


@dataclass
class PluginInfo:
    """One plugin: where it comes from and what became of it."""

    name: str
    """Of the entry point, the built-in module, or the local file without its `.py`."""
    dist: str = ""
    """The distribution that offers it; empty for a local file."""
    version: str = ""
    source_path: str = ""
    sha256: str = ""
    """Of its source: the file, or all Python files of the package it stands in."""
    status: str = "loaded"
    """loaded, failed or blocked."""
    phase: str = ""
    """Where it failed: find, import, check, specs (what it returned) or register."""
    error: str = ""
    hooks: list[str] = field(default_factory=list)
    specs: dict[str, dict[str, object]] = field(default_factory=dict)
    """Kind to name to spec: what it provides."""

    @property
    def id(self) -> str:
        """`distribution:name`, unique among plugins; `local:name` for a local file."""
        return f"{self.dist or 'local'}:{self.name}"

    @property
    def failure(self) -> str:
        """That it failed, and why."""
        return f"plugin {self} failed to load: {self.error}"

    def __str__(self):
        origin = f"{self.dist} {self.version}" if self.dist else self.source_path or "local file"
        return f"{self.id} ({origin})"


@dataclass
class Host:
    """The plugin manager, every plugin that was found, and the text of those that are local files."""

    manager: pluggy.PluginManager
    blocked: list[str]
    plugins: list[PluginInfo] = field(default_factory=list)
    local_sources: dict[str, str] = field(default_factory=dict)
    digests: dict[Path, str] = field(default_factory=dict)
    """Of the source of the packages that plugins stand in, by folder."""

    @property
    def failed(self) -> list[PluginInfo]:
        return [info for info in self.plugins if info.status == "failed"]

    def what_failed(self) -> str:
        """To go on with where a name is not known: the plugins that may have it, and why they failed."""
        return "".join(f"\nIt may belong to a plugin that is broken: {info.failure}" for info in self.failed)

    @property
    def idle_blocks(self) -> list[str]:
        """Entries of `blocked` that name no plugin: most likely a slip of the pen."""
        return [block for block in self.blocked if not any(_blocks(block, info) for info in self.plugins)]

    def tell(self, hook: str, **arguments) -> list[str]:
        """Call a lifecycle hook of every plugin.

        One that raises stops neither the others nor the run: its error becomes a line of the result.
        """
        problems = []
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                problems.append(f"plugin {implementation.plugin_name} failed in {hook}: {cause(error)}")
        return problems

    def ask(self, hook: str, **arguments) -> None:
        """Call a lifecycle hook that may refuse, each plugin with a copy of the arguments of its own.

        A KdrayError is passed on with the plugin's name before it. Any other exception is the plugin's fault.
        """
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            name = implementation.plugin_name
            try:
                implementation.function(*(copy.deepcopy(arguments[each]) for each in implementation.argnames))
            except KdrayError as error:
                raise type(error)(f"plugin {name} refuses: {error}") from None
            except Exception as error:
                raise PluginError(f"plugin {name} failed in {hook}: {cause(error)}") from error

    def add(self, info: PluginInfo, load: Callable[[PluginInfo], object]) -> None:
        """Import by `load(info)`, check and register one plugin, or record why not."""
        self.plugins.append(info)
        if any(_blocks(block, info) for block in self.blocked):
            info.status = "blocked"
            return
        taken = self.manager.has_plugin(info.id)
        try:
            info.phase = "import"
            plugin = load(info)
            info.phase = "check"
            if taken or self.manager.is_registered(plugin):
                raise PluginError(f"it is loaded already, as {self.manager.get_name(plugin) or info.id}; offer it once")
            found = implementations(self.manager, plugin)
            info.phase = "specs"
            specs = {kind: collect(kind, found[f"kdray_{kind}"]) for kind in KINDS if f"kdray_{kind}" in found}
            info.phase = "register"
            self.manager.register(plugin, name=info.id)
        except (Exception, SystemExit) as error:  # a module that calls exit() must not end kdray
            if not taken and self.manager.has_plugin(info.id):  # a failed register() may leave some of the hooks behind
                self.manager.unregister(name=info.id)
            info.status, info.error = "failed", cause(error)
            return
        info.phase, info.hooks, info.specs = "", sorted(found), specs


def load_plugins(
    project: Project | None = None,
    *,
    paths: Iterable[Path] = (),
    blocked: Iterable[str] = (),
    local_sources: Mapping[str, str] | None = None,
) -> Host:
    """Load the built-in plugins, then those of installed packages, then local files and folders.

    project: its `plugin_paths` and `blocked` are added to the other arguments.
    blocked: names of distributions or entry points, or `distribution:entry-point`; KDRAY_BLOCK of the environment adds
    to them.
    local_sources: text of local plugins by name, as a worker gets them from the driver (`Registry.local_sources()`).
    """
    if project is not None:
        paths, blocked = [*project.plugin_paths, *paths], [*project.blocked, *blocked]
    environment = [name.strip() for name in os.environ.get("KDRAY_BLOCK", "").split(",") if name.strip()]
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    host = Host(manager, list(dict.fromkeys([*blocked, *environment])))
    for module in BUILTIN:
        load = partial(importlib.import_module, module)
        host.add(PluginInfo(module, "kdray", __version__), partial(_import_installed, host, module, load))
    _add_entry_points(host)
    for name, text in (local_sources or {}).items():
        host.add(PluginInfo(name), partial(_import_local, host, text=text))
    for path in paths:
        for file in local_files(Path(path)):
            host.add(PluginInfo(file.stem, source_path=str(file)), partial(_import_local, host))
    return host


def _add_entry_points(host):
    for name, version, dist in distributions(hooks.PROJECT):
        try:
            points = sorted(dist.entry_points.select(group=hooks.PROJECT))
        except Exception as error:
            info = PluginInfo(name, name, version, str(dist.locate_file("")), status="failed", phase="find")
            info.error = f"entry_points.txt: {cause(error)}"
            host.plugins.append(info)
            continue
        for point in points:
            host.add(PluginInfo(point.name, name, version), partial(_import_installed, host, point.module, point.load))


def _import_installed(host: Host, module: str, load: Callable[[], object], info: PluginInfo) -> object:
    info.source_path, info.sha256 = locate(module, host.digests)
    return load()


def _import_local(host: Host, info: PluginInfo, text: str | None = None) -> ModuleType:
    """`text` is given on a worker; else it is read from the plugin's file."""
    info.phase = "find"
    if info.name in host.local_sources:
        raise PluginError(f"another local plugin is named '{info.name}' too; rename one of the files")
    if text is None:
        if not Path(info.source_path).exists():
            raise PluginError(f"there is no file or folder {info.source_path}")
        if not info.source_path.endswith(".py"):
            raise PluginError("a local plugin is a .py file, or a folder of such files")
        text = Path(info.source_path).read_bytes().decode("utf-8")
    info.phase, info.sha256 = "import", hashlib.sha256(text.encode()).hexdigest()
    module = import_text(info.name, text, info.source_path or f"<local plugin {info.name}.py>")
    host.local_sources[info.name] = text
    return module


def _blocks(block: str, info: PluginInfo) -> bool:
    return canonical(block) in {canonical(name) for name in (info.dist, info.name, info.id) if name}
