"""The driver's code on a worker: the same plugins, and the user's own modules, which another node may not have."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from importlib.util import spec_from_loader
from pathlib import Path

from ..registry import Registry, check_fingerprint


@dataclass(frozen=True)
class Source:
    """A module as text. file: where the driver has it, for tracebacks; "" for a folder without an __init__.py."""

    text: str
    file: str
    is_package: bool


@dataclass(frozen=True)
class Code:
    """What the driver sends to each worker of its code. modules: the user's, by name."""

    plugins: list[dict] = field(default_factory=list)
    local_sources: dict[str, str] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()
    modules: dict[str, Source] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: Registry) -> Code:
        """Made when everything has been built on the driver once: what it needs is imported then."""
        blocked = tuple(registry.host.blocked)
        return cls(registry.fingerprint(), registry.local_sources(), blocked, own_modules(Path.cwd()))

    def load(self) -> Registry:
        """The registry of a worker. Raises PluginError when its plugins are not the driver's."""
        if self.modules:
            sys.meta_path.insert(0, Shipped(self.modules))
        registry = Registry.load(blocked=self.blocked, local_sources=self.local_sources)
        check_fingerprint(self.plugins, registry.fingerprint())
        return registry


def own_modules(folder: Path) -> dict[str, Source]:
    """Those that this process has imported from `folder`, without what is installed: each node has its own of that."""
    files = {name: Path(getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items())}
    files = {name: file for name, file in files.items() if name != "__main__" and file.suffix == ".py"}
    mine = _within({file.parent for file in files.values()}, folder)  # thousands of modules lie in hundreds of folders
    found = {name: file for name, file in files.items() if file.parent in mine}
    installed = _installed() if found else {}
    found = {name: file for name, file in found.items() if name.partition(".")[0] not in installed}
    sources = {n: Source(f.read_text(encoding="utf-8"), str(f), f.name == "__init__.py") for n, f in found.items()}
    for name in found:
        while name := name.rpartition(".")[0]:  # folders without an __init__.py
            sources.setdefault(name, Source("", "", True))
    return sources


_installed = cache(packages_distributions)  # reads the metadata of every package


def _within(places: set[Path], folder: Path) -> set[Path]:
    """Those that hold the user's modules: Python itself may be somewhere in the folder too."""
    folder, *python = (Path(path).resolve() for path in (folder, sys.prefix, sys.base_prefix))

    def is_mine(place: Path) -> bool:
        return place.is_relative_to(folder) and not any(place.is_relative_to(prefix) for prefix in python)

    return {place for place in places if is_mine(place.resolve())}


class Shipped(MetaPathFinder, ExecutionLoader):
    """Goes before a node's own files, which may be older."""

    def __init__(self, modules: dict[str, Source]):
        self.modules = modules

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in self.modules:
            return None
        is_folder = not self.modules[name].file  # whose module has no file: who looks through modules expects that
        return ModuleSpec(name, None, is_package=True) if is_folder else spec_from_loader(name, self)

    def is_package(self, name: str) -> bool:
        return self.modules[name].is_package

    def get_filename(self, name: str) -> str:
        return self.modules[name].file

    def get_source(self, name: str) -> str:
        return self.modules[name].text
