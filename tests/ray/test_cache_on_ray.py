"""A run from stored answers ends bit for bit where the run with the live teacher does, wherever they are stored and
whoever stored them."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from kdray.cli.main import main
from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.launch.experiment import Experiment
from kdray.launch.precompute import Precompute
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.teacher.cache import Cache
from kdray.teacher.storage import open_storage
from tests.conftest import Lab, bucket_url
from tests.ray.test_survival import same

SETTINGS = {
    "data": {"samples": 250, "batch_size": 24},  # the last batch of an epoch has 10 pictures
    "student": {"model": "resnet8"},
    "losses": {
        "ce": {},
        "kd": {"temperature": 2.0},
        "crd": {"dim": 16, "weight": 0.1, "negatives": {"kind": "bank", "count": 40}},
    },
    "schedule": {"epochs": 3},
    "engine": {"ema": 0.9, "log_every": 1},
    "checkpoint": {"every_steps": 4},  # 11 steps an epoch: checkpoints fall inside epochs
}


class Place(Lab):
    """A folder where one config is run with its teacher's answers from many places."""

    def __init__(self, path, teacher_weights):
        super().__init__(path)
        self.teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}

    def written(self, name: str, workers: int, cache: str | None, fill=False, **changes) -> Path:
        """A config. cache: its name here, or a URL; None: the teacher is live."""
        where = cache if cache is None or "://" in cache else str(self.path / "caches" / cache)
        stored = {"cache": {"path": where, "dtype": "fp32", "fill": fill}} if where else {}
        changes = {**SETTINGS, "scale": {"num_workers": workers}, **changes}
        return self.config(name, teacher={**self.teacher, **stored}, **changes)

    def train(self, name: str, workers: int, cache: str | None = None, **changes) -> RunFolder:
        """The run of that name, made at first use."""
        run = RunFolder(self.path / "runs" / name)
        if not run.finished:
            config = load_config(self.written(name, workers, cache, **changes), registry=self.registry).config
            Experiment(self.registry, find_project(self.path), Console(), "test").start(config)
        return run

    def precompute(self, workers: int, cache: str, **changes) -> dict:
        config = load_config(self.written("precompute", workers, cache, **changes), registry=self.registry).config
        (found,) = Precompute(self.registry, find_project(self.path), Console(), "test").run(config)
        return found


@pytest.fixture(scope="module")
def ray_session(endpoint, ray_session):
    """Its workers have the credentials of the store."""
    return ray_session


@pytest.fixture(scope="module")
def folder(tmp_path_factory, teacher_weights):
    return Place(tmp_path_factory.mktemp("cache-on-ray"), teacher_weights)


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.chdir(folder.path)
    return folder


@pytest.fixture
def live(ray_session, place):
    """The run with the live teacher."""
    return place.train("live", 2)


@pytest.fixture
def stored(ray_session, place):
    """The name of a cache that two workers have made."""
    if not (place.path / "caches" / "stored").exists():
        found = place.precompute(2, "stored")
        assert found["computed"] == found["needed"] < 3 * 250  # epochs that show a picture again share its answer
    return "stored"


@pytest.fixture
def alone(place, stored):
    """The run of this process from that cache."""
    return place.train("alone", 0, stored)


def test_a_run_from_a_cache_is_the_run_with_the_teacher(place, live, stored):
    run = place.train("cached", 2, stored)
    assert run.rows("teacher")[0]["cache"] == str(place.path / "caches" / "stored")
    assert "cache" not in live.rows("teacher")[0]
    same(run, live)


@pytest.mark.thorough
def test_a_cache_holds_the_answers_to_mixed_pictures(ray_session, place):
    data = {**SETTINGS["data"], "mix": "mixup"}
    mixed = {"data": data, "student": {"model": "convnet", "widths": [8]}, "losses": {"ce": {}, "kd": {}}}
    live = place.train("live-mixed", 2, **mixed)
    assert place.precompute(0, "mixed", **mixed)["needed"] == 3 * 250  # each picture is another one
    same(place.train("mixed", 2, "mixed", **mixed), live)


@pytest.mark.thorough
def test_a_run_that_fills_a_cache_is_the_run_with_the_teacher(place, live, alone):
    same(place.train("fills", 2, "filled", fill=True), live)
    same(place.train("from-filled", 0, "filled"), alone)


@pytest.mark.thorough
def test_a_killed_worker_of_a_run_that_fills_a_cache(place, live, alone):
    run = RunFolder(place.path / "runs" / "killed")
    killed = []

    def kill():
        while not killed:
            time.sleep(0.02)
            rows = run.rows() if run.path.exists() else []
            kept = [row["step"] for row in rows if row["kind"] == "checkpoint"]
            if kept and max(row["step"] for row in rows) > kept[-1] > 11:
                killed.append(json.loads((run.path / "worker-1.json").read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    same(place.train("killed", 2, "killed", fill=True), live)
    assert json.loads((run.path / "worker-1.json").read_text())["pid"] not in [*killed, os.getpid()]
    assert len(killed) == 1 and run.rows("resumed")
    same(place.train("from-killed", 0, "killed"), alone)


# -- an object store -----------------------------------------------------------------------------------------------


@pytest.fixture
def kdray(monkeypatch, capfd):
    """The command line in this process: exit code, output, messages."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdray", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
        except SystemExit as end:
            return end.code or 0, *capfd.readouterr()
        return 0, *capfd.readouterr()

    return command


@pytest.fixture
def url(ray_session, endpoint, place, stored):
    """A store with the answers, which this process has made and two workers would have made too."""
    url = bucket_url(endpoint, place.path)
    place.precompute(0, url)
    assert files(url) == files(str(place.path / "caches" / stored))
    return url


def files(where: str) -> dict[str, bytes]:
    storage = open_storage(where)
    names = ["manifest.json", *(f"{folder}/{name}" for folder in storage.folders() for name in storage.list(folder))]
    return {name: storage.read(name) for name in names}


def test_a_store_serves_as_a_folder_does(place, live, alone, url, kdray):
    code, output, _ = kdray("cache", "info", url, "--json")
    (facts,) = json.loads(output)
    assert code == 0 and facts["answers"].keys() == {"logits", "embedding"} and facts["stored"]["dtype"] == "fp32"
    code, output, told = kdray("cache", "verify", url)
    assert (code, output) == (0, f"sound: {facts['path']}\n"), told
    code, output, told = kdray("cache", "verify", "--config", place.written("store", 0, url))
    assert code == 0 and output.startswith("sound: s3://"), told

    run = place.train("store-0", 0, url)
    assert run.rows("teacher")[0]["cache"].startswith("s3://")
    same(run, alone)
    same(place.train("store-2", 2, url), live)


def test_a_shard_that_is_gone_from_the_store_is_refused(place, url, kdray):
    cache = Cache(open_storage(url))
    shard = cache.shards("logits")[-1]
    cache.remove("logits", shard)
    code, _, told = kdray("train", place.written("gone", 0, url))
    assert code == 4 and not (place.path / "runs" / "gone").exists()
    assert "is not complete: it has" in told and "`kdray precompute` with the same config adds what is missing" in told
    found = place.precompute(0, url)
    assert found["computed"] == found["missing_before"] == shard.rows
    assert shard in cache.shards("logits")


def test_a_damaged_copy_of_a_shard_is_found(place, alone, url):
    place.train("store-0", 0, url)
    copies = {file: file.read_bytes() for file in (place.path / "cache" / "mirror").rglob("[0-9]*.safetensors")}
    assert copies
    for copy, data in copies.items():
        before = copy.stat()
        copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))  # nothing tells it from a good one but its bytes
    same(place.train("damaged-copies", 0, url), alone)
    assert {file: file.read_bytes() for file in copies} == copies


def test_a_damaged_shard_in_the_store_is_refused(place, url, kdray):
    cache = Cache(open_storage(url))
    shard = cache.shards("logits")[0]
    data = cache.storage.read(f"logits/{shard.name}")
    cache.storage.write(f"logits/{shard.name}", data[:-1] + bytes([data[-1] ^ 1]))
    code, _, told = kdray("train", place.written("damaged", 0, url))
    assert code == 4 and f"{shard.name} is damaged" in told
    code, _, told = kdray("cache", "verify", url, "--repair")
    assert code == 4 and "1 damaged shards (removed;" in told and f"{shard.name} is damaged" in told
    assert place.precompute(0, url)["computed"] == shard.rows
    assert cache.storage.read(f"logits/{shard.name}") == data
