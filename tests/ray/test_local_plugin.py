"""A local plugin file reaches the workers of another node, which has not got the file."""

import json

import pytest

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.launch.experiment import Experiment
from kdray.registry import Registry
from kdray.run.console import Console
from tests.engine.test_stages import PLUGIN

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


@pytest.fixture
def two_nodes():
    """A Ray cluster of two nodes with one CPU each, and a head without any."""
    from ray.cluster_utils import Cluster

    from kdray.launch.session import SETTINGS

    patch = pytest.MonkeyPatch()
    for key, value in SETTINGS.items():
        patch.setenv(key, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()
    patch.undo()


def test_it_travels_with_the_run(two_nodes, lab):
    file = lab.path / "mine.py"
    file.write_text(PLUGIN.read_text() + NODE_OF_WORKER.format(folder=str(lab.path)))
    registry = Registry.load(paths=[file])
    file.unlink()  # from here on only the driver's memory has it
    written = lab.config("far", losses={"ce": {}, "only_before": {}}, scale={"num_workers": 2})
    config = load_config(written, registry=registry).config
    run = Experiment(registry, find_project(lab.path), Console(), "test", two_nodes.address).start(config)
    assert run.finished and len(run.rows("epoch")) == 2
    nodes = {(lab.path / f"rank-{rank}").read_text() for rank in (0, 1)}
    assert len(nodes) == 2, "both workers were on one node"
    environment = json.loads((run.path / "environment.json").read_text())
    assert "mine" in [plugin["name"] for plugin in environment["plugins"]]
