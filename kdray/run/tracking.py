"""The trackers of a run, kept from harming it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator

from ..config.schema import Config
from ..config.sections import parse_options
from ..errors import ConfigError
from ..options import Options
from ..tracker import Tracker


class Tracking:
    """While it is open, every tracker that the config names hears of each row. One that fails is told of once, and is
    left out from then on."""

    def __init__(self, config: Config, registry, run: dict, say: Callable[[str], None]):
        self.say, self.live = say, {}
        for name, cls, options in chosen(config, registry):
            with self._harmless(name):
                self.live[name] = cls(options, run)

    def __enter__(self) -> Tracking:
        return self

    def row(self, row: dict) -> None:
        for name, tracker in list(self.live.items()):
            with self._harmless(name):
                tracker.row(row)

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        interrupted = error is not None and issubclass(error, KeyboardInterrupt)
        state = "interrupted" if interrupted else "failed" if error else "finished"
        for name, tracker in list(self.live.items()):
            with self._harmless(name):
                tracker.close(state)

    @contextlib.contextmanager
    def _harmless(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.live.pop(name, None)
            text = str(error).strip() or "no message"
            self.say(f"warning: tracker {name} failed and is left out from here on: {type(error).__name__}: {text}")


def chosen(config: Config, registry) -> Iterator[tuple[str, type[Tracker], Options]]:
    """Name, class and options of the trackers of a loaded config."""
    for entry in config.trackers:
        ((name, options),) = entry.items()
        spec = registry.get("trackers", name)
        yield name, spec.cls, parse_options(spec.Options, options)


def check_trackers(config: Config, registry) -> None:
    """Raises ConfigError where one cannot work, before anything is written."""
    for _, cls, options in chosen(config, registry):
        cls.check(options)


def need(package: str) -> None:
    """Raises ConfigError when a package of an extra of the same name is not installed. It is not imported."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"the tracker {package} needs the package {package}: pip install 'kdray[{package}]'")


def leaves(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values of a config by their dotted paths."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
