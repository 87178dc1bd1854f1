"""Where plugins come from: modules of installed distributions, and the text of local files."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType


def canonical(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(group: str) -> list[tuple[str, str, metadata.Distribution]]:
    """Name, version and distribution of those with entry points of `group`, in order of their names.

    Of one that is on the path twice it is the first, as for `import`.
    """
    found = {}
    for dist in metadata.distributions():
        if f"[{group}]" in (dist.read_text("entry_points.txt") or ""):
            about = metadata_of(dist)
            found.setdefault(canonical(about[0]), (*about, dist))
    return [found[name] for name in sorted(found)]


def metadata_of(dist: metadata.Distribution) -> tuple[str, str]:
    """Name and version; where an interrupted installation left no METADATA, the place instead of the name."""
    if not dist.read_text("METADATA") and not dist.read_text("PKG-INFO"):
        return f"unnamed distribution in {dist.locate_file('')}", "unknown"
    return dist.metadata["Name"], dist.version


def locate(module: str, known: dict[Path, str]) -> tuple[str, str]:
    """A module's file and the digest of its source, without importing the module itself (but the packages it is in).

    The digest is the sha256 of its file, or of all Python files of the package it stands in: it may import its
    neighbours. Both are empty for a module without Python source. known: the digests of packages that were read
    before, which it adds to. Raises ModuleNotFoundError.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named '{module}'")
    if not spec.origin or not spec.origin.endswith(".py"):
        return spec.origin or "", ""
    file = Path(spec.origin)
    if not spec.parent:
        return spec.origin, hashlib.sha256(file.read_bytes()).hexdigest()
    if file.parent not in known:
        whole = hashlib.sha256()
        for source in sorted(file.parent.rglob("*.py")):
            whole.update(source.relative_to(file.parent).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
        known[file.parent] = whole.hexdigest()
    return spec.origin, known[file.parent]


def local_files(path: Path) -> list[Path]:
    """A folder's plugins are its .py files, but those that begin with an underscore."""
    return sorted(file for file in path.glob("*.py") if not file.name.startswith("_")) if path.is_dir() else [path]


def import_text(name: str, text: str, file: str) -> ModuleType:
    """The module kdray_local_<name> made of `text`: the same thing on a worker, which has the text but not the file."""
    module = ModuleType(f"kdray_local_{re.sub('[^A-Za-z0-9_]', '_', name)}")
    module.__file__ = file
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # tracebacks show its lines
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, file, "exec"), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
