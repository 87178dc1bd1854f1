"""What many tests need: small configs on digits, and runs of them."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kdray.cli.main import main
from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.launch.experiment import Experiment
from kdray.launch.measure import accuracy, rebuild, this_device
from kdray.registry import Registry
from kdray.run.console import Console
from kdray.run.folder import RunFolder

ROOT = Path(__file__).parent.parent
KEY, SECRET = "AKIAKDRAY", "se/cret+of=ours"
"""Credentials for the object store of the tests."""

SMALL = {
    "name": "small",
    "data": {"name": "digits", "batch_size": 32, "samples": 160, "augment": [{"crop": {"padding": 1}}]},
    "student": {"model": "convnet", "widths": [4, 8]},
    "losses": {"ce": {}},
    "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 5e-4},
    "schedule": {"epochs": 2},
    "scale": {"num_workers": 0},
}


def hear_interrupts() -> None:
    """For subprocess's `preexec_fn`. A shell lets what it starts in the background ignore Ctrl-C, and so would its
    children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`kdray …` in this process and its current folder, whose kdray.toml may be another one in each test. Returns its
    exit code."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # `module:factory` adds the working directory
    monkeypatch.setattr(sys, "argv", ["kdray", *arguments])
    Registry.default.__func__.cache_clear()
    try:
        main()
        return 0
    except SystemExit as end:
        return end.code or 0
    finally:
        Registry.default.__func__.cache_clear()


WHOLE = ("losses", "student", "teacher", "extra_views")  # given anew as a whole


def merged(base: dict, changes: dict) -> dict:
    out = dict(base)
    for key, value in changes.items():
        out[key] = (
            merged(out[key], value)
            if isinstance(value, dict) and isinstance(out.get(key), dict) and key not in WHOLE
            else value
        )
    return out


def in_order(rows: list[dict]) -> list[dict]:
    """By step: that a checkpoint is on disk is told some steps later, sooner or later."""
    return sorted(rows, key=lambda row: row["step"])


RAY = "tests/ray/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _of_ray(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Where tests are spread over processes, files stay whole, and all of tests/ray goes to one, the first: those start
    processes for two CPUs, which wait for each other at every step."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return RAY if _of_ray(nodeid) else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The others take what CPU is left."""
    if "PYTEST_XDIST_WORKER" in os.environ and not _of_ray(item.nodeid) and not os.nice(0):
        os.nice(10)


def _of_ray(nodeid: str) -> bool:
    return nodeid.startswith(RAY)


class Lab:
    """A folder of its own for configs and runs."""

    profile = False

    def __init__(self, path: Path):
        self.path, self.registry = path, Registry.default()

    def config(self, name: str, **changes) -> Path:
        file = self.path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(merged(SMALL, {"name": name, **changes}), sort_keys=False))
        return file

    def run(self, name: str, *overrides: str, **changes) -> RunFolder:
        """Train to the end, in this process's Ray session or without Ray."""
        config = load_config(self.config(name, **changes), overrides, registry=self.registry).config
        project = find_project(self.path)
        return Experiment(self.registry, project, Console(), "test", profile=self.profile).start(config)

    def measured(self, run: RunFolder) -> dict[str, float]:
        """A run's last weights, read again and put to the test."""
        config = load_config(run.config_file, registry=self.registry).config
        weights = str(run.path / "student.safetensors")
        found = rebuild(config, self.registry, find_project(self.path).data, weights, "student", this_device())
        return accuracy(found, found.parts.data.test)


@pytest.fixture(scope="session", autouse=True)
def frozen_imports():
    """Each run collects garbage; what was imported by now is not looked through every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory) -> str:
    """A convnet [16, 32] that knows its digits."""
    lab = Lab(tmp_path_factory.mktemp("teacher"))
    run = lab.run(
        "teacher",
        data={"samples": 1000, "batch_size": 50},
        student={"model": "convnet", "widths": [16, 32]},
        schedule={"epochs": 15, "name": "cosine"},
        optimizer={"lr": 0.1},
        run={"dir": str(lab.path)},
    )
    assert run.summary["last"]["top1"] > 0.85
    return str(run.path / "student.safetensors")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A real server of S3's protocol on this machine, and credentials for it in the environment, also of what is
    started after it."""
    from moto.server import ThreadedMotoServer  # it imports much

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield ":".join(map(str, server.get_host_and_port()))
    server.stop()


def bucket_url(endpoint: str, tmp_path: Path) -> str:
    """A bucket of the test's own, which is made at first use."""
    name = f"b-{tmp_path.name}".replace("_", "-").lower()[:60].rstrip("-")
    return f"s3://{name}/caches/one?scheme=http&endpoint_override={endpoint}&allow_bucket_creation=true"
