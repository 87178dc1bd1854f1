"""Two nodes, one of which has other files: code travels, storage must be shared, other users are waited for."""

from __future__ import annotations

import json
import threading
import time

import pytest

from kdray import __version__
from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.errors import ConfigError, Stopped
from kdray.launch import nodes
from kdray.launch.experiment import Experiment
from kdray.launch.tune import Tune, prepare
from kdray.registry import Registry
from kdray.run.asking import STOP, ask
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from tests.conftest import Lab
from tests.engine.conftest import PLUGIN
from tests.ray.clusters import somebody, two_nodes, wait_until

NODE_OF_WORKER = """

import ray
import pathlib

def _note(self):
    return [Stage("note", 1, self.note)]

def _node(self, student, teacher, batch, step):
    pathlib.Path({folder!r}, f"rank-{{step.rank}}").write_text(ray.get_runtime_context().get_node_id())
    return {{}}

OnlyBefore.stages, OnlyBefore.note = _note, _node
"""
NETWORK = """
from parts.layers import head

def small(num_classes):
    return head(num_classes)
"""
LAYERS = """
from torch import nn

def head(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


class Heard(Console):
    """`then` is called when the run says that it waits."""

    def __init__(self, then=None):
        super().__init__()
        self.lines, self.then = [], then

    def say(self, text):
        self.lines.append(text)
        if text.startswith("waiting for room"):
            self.then()


@pytest.fixture(scope="module")
def address(folder):
    with two_nodes(folder / "here") as session:
        yield session.address


@pytest.fixture
def here(address, folder, monkeypatch):
    monkeypatch.chdir(folder / "here")
    return Lab(folder / "here")


def experiment(here, address, registry=None, then=None):
    return Experiment(registry or here.registry, find_project(here.path), Heard(then), "test", address)


def config(here, name, registry=None, **changes):
    return load_config(here.config(name, **changes), registry=registry or here.registry).config


def test_storage_that_one_node_does_not_see_is_refused_before_anything_is_written(here, address):
    mine = here.path / "mine.safetensors"
    mine.write_bytes(b"weights")
    teacher = {"model": "convnet", "checkpoint": str(mine)}
    alone = config(here, "alone", teacher=teacher, losses={"ce": {}, "kd": {}}, scale={"num_workers": 2})
    with pytest.raises(ConfigError) as caught:
        experiment(here, address).start(alone)
    first, *lines = str(caught.value).splitlines()
    assert first == "the cluster cannot run this:" and len(lines) == 2
    assert f"does not see {here.path / 'runs'} as it is here" in lines[0] and "on storage that every node" in lines[0]
    assert f"the checkpoint of teacher {mine} is not there" in lines[1]
    assert not (here.path / "runs").exists()


@pytest.mark.thorough
def test_so_is_a_search(here, address):
    file = here.config("search", tune={"space": {"optimizer.lr": {"uniform": [0.1, 0.2]}}, "trials": 2})
    with pytest.raises(ConfigError, match=rf"does not see {here.path / 'runs'} as it is here"):
        Tune(here.registry, find_project(here.path), Heard(), "test", address).start(
            prepare(file, ["data.validation=0.1"], here.registry)
        )
    assert not (here.path / "runs").exists()


def test_another_version_of_kdray_on_the_nodes_is_refused(here, address, monkeypatch, folder):
    monkeypatch.setattr(nodes, "__version__", "99")
    with pytest.raises(ConfigError, match=f"it has kdray {__version__}, and here is 99") as caught:
        experiment(here, address).start(config(here, "newer", scale={"num_workers": 2}, run={"dir": str(folder)}))
    assert str(caught.value).count("and here is 99") == 2, "both nodes"


def test_plugins_and_modules_travel_and_room_is_waited_for(here, address, folder):
    import ray

    (here.path / "mine.py").write_text(PLUGIN.read_text() + NODE_OF_WORKER.format(folder=str(folder)))
    (here.path / "networks.py").write_text(NETWORK)
    (here.path / "parts").mkdir()  # without __init__.py
    (here.path / "parts" / "layers.py").write_text(LAYERS)
    registry = Registry.load(paths=[here.path / "mine.py"])
    far = config(
        here,
        "far",
        registry,
        losses={"ce": {}, "only_before": {}},
        student={"model": "networks:small"},
        scale={"num_workers": 2},
        run={"dir": str(folder / "runs")},
    )

    theirs = somebody()
    ours = experiment(here, address, registry, then=lambda: ray.kill(theirs))
    run = ours.start(far)
    assert run.finished and len(run.rows("epoch")) == 2
    assert "waiting for room in the cluster: wanted 2 × 1 CPU, free 1 of 2 CPU" in ours.console.lines
    ranks = {(folder / f"rank-{rank}").read_text() for rank in (0, 1)}
    assert len(ranks) == 2, "both workers were on one node"
    environment = json.loads((run.path / "environment.json").read_text())
    assert "mine" in [plugin["name"] for plugin in environment["plugins"]]


def test_a_run_that_waits_can_be_stopped(here, address, folder):
    import ray

    theirs, runs = somebody(), folder / "runs"
    waits = config(here, "waits", scale={"num_workers": 2}, run={"dir": str(runs)})
    with pytest.raises(Stopped, match="while it waited for room"):
        experiment(here, address, then=lambda: ask(runs / "waits", STOP)).start(waits)
    assert RunFolder(runs / "waits").state == "interrupted"
    ray.kill(theirs)


@pytest.mark.thorough
def test_a_node_that_is_about_to_be_taken_away_asks_for_a_checkpoint(here, address, folder):
    """As a spot instance is; the last test, since the node takes no new work afterwards."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    runs = folder / "runs"
    long = config(
        here,
        "called-back",
        data={"samples": 1000, "batch_size": 50},
        schedule={"epochs": 40},
        checkpoint={"every_epochs": 40},
        scale={"num_workers": 2},
        run={"dir": str(runs)},
    )

    def call_back():
        wait_until((runs / "called-back" / "progress.json").exists, "the run trains", 120)
        node = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
        deadline = int(1000 * (time.time() + 600))
        ray._raylet.GcsClient(address=address).drain_node(
            node, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "", deadline
        )

    caller = threading.Thread(target=call_back)
    caller.start()
    ours = experiment(here, address)
    run = ours.start(long)
    caller.join()
    asked, last = run.rows("checkpoint")
    assert 0 < asked["step"] < last["step"] == 40 * 20
    assert sum("is about to be taken away: a checkpoint is written before" in line for line in ours.console.lines) == 1
    assert not (run.path / ".checkpoint").exists()
