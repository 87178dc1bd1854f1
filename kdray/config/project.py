"""`kdray.toml`: where things are and which plugins are loaded. Never a hyper-parameter."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from ..errors import ConfigError
from ..options import Options
from .explain import explain
from .yaml import Mark, Problem, dotted

FILE = "kdray.toml"


class Paths(Options):
    data: str = Field("data", description="Data sets: each has a folder of its name here.")
    runs: str = Field("runs", description="Run folders.")
    cache: str = Field("cache", description="Cached outputs of teachers.")


class Plugins(Options):
    load: list[str] = Field([], description="Plugin files, and folders of such, loaded beside the installed plugins.")
    block: list[str] = Field([], description="Names of plugins that are not loaded.")


class Ray(Options):
    address: str | None = Field(None, description="The cluster to join. Default: RAY_ADDRESS, else a local one.")


class ProjectFile(Options):
    paths: Paths = Paths()
    plugins: Plugins = Plugins()
    ray: Ray = Ray()


@dataclass(frozen=True)
class Project:
    """The settings of a project, all paths absolute. `file` is None where no kdray.toml was found."""

    root: Path
    file: Path | None
    data: Path
    runs: Path
    cache: Path
    plugin_paths: tuple[Path, ...] = ()
    blocked: tuple[str, ...] = ()
    ray_address: str | None = None


def find_project(start: str | os.PathLike | None = None) -> Project:
    """The nearest kdray.toml from `start` (the current directory) upward; where there is none, the defaults in `start`.

    Raises ConfigError for a file that is not TOML or says what kdray does not know.
    """
    start = Path(start or Path.cwd()).absolute()
    file = next((p for folder in (start, *start.parents) if (p := folder / FILE).is_file()), None)
    settings = _read(file) if file else ProjectFile()
    root = file.parent if file else start

    def place(name: str) -> Path:
        if "\0" in name:
            raise ConfigError(f"{file}: {name!r} is not a path: the character U+0000 is not allowed")
        return Path(os.path.abspath(root / os.path.expanduser(name)))

    return Project(
        root,
        file,
        data=place(settings.paths.data),
        runs=place(settings.paths.runs),
        cache=place(settings.paths.cache),
        plugin_paths=tuple(map(place, settings.plugins.load)),
        blocked=tuple(settings.plugins.block),
        ray_address=settings.ray.address,
    )


def _read(file: Path) -> ProjectFile:
    try:
        value = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        return ProjectFile.model_validate(value)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file in UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except ValidationError as error:
        lines = []
        for fault in explain(error, ProjectFile, value):
            lines.append(str(Problem(Mark(str(file)), dotted(fault.concerns), fault.text)))
        raise ConfigError("\n".join(lines)) from None
    except tomllib.TOMLDecodeError as error:  # its message ends with the line and the column
        raise ConfigError(f"{file}: not TOML: {error}") from None
    except (RecursionError, ValueError):
        raise ConfigError(f"{file}: not TOML: too many levels of nesting, or digits of a number") from None
