"""Every first-party method trains on two Ray workers with the losses of its own config: finite, and falling."""

import math
import socket

import pytest

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.launch import experiment as launch
from kdray.registry import Registry
from kdray.run.console import Console
from tests.conftest import ROOT, Lab

FIRST_PARTY = sorted(
    name
    for (kind, name), owners in Registry.default().owners.items()
    if kind == "distillers" and owners[0].dist == "kdray"
)
WITHOUT_CONFIG = {"ce"}
"""Distillers that stand in every config, beside the one that it is about."""
EPOCHS = {"crd": 16}
"""More than 4 for methods that rise at first: CRD's banks begin with random vectors."""
REGULARISERS = {"tfkd"}
"""Terms that pull against cross-entropy and rise while it falls: what falls is the sum."""
ALONE = {"kdsvd"}
"""At the weight of their config too weak to fall against cross-entropy in a few steps."""
OF_ONE_WIDTH = {"fsp", "kdsvd"}
"""Methods that compare maps channel by channel."""


def config_of(name):
    for folder in ("methods", "repdistiller", "."):
        if (path := ROOT / "configs" / folder / f"{name}.yaml").exists():
            return path
    return None


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Networks that have seen some digits: one wider than the student, one as wide."""
    lab, found = Lab(tmp_path_factory.mktemp("teacher")), {}
    for model in ("wrn_16_2", "resnet14"):
        run = lab.run(
            model,
            data={"samples": 600, "batch_size": 50},
            student={"model": model},
            schedule={"epochs": 3, "name": "cosine"},
            optimizer={"lr": 0.1},
            run={"dir": str(lab.path)},
        )
        assert run.summary["last"]["top1"] > 0.6
        found[model] = str(run.path / "student.safetensors")
    return found


@pytest.fixture(scope="module")
def group(ray_session):
    """Two Ray workers that stay for all runs of the module: starting a group takes longer than these runs."""
    import ray

    @ray.remote(num_cpus=1)
    class Worker:
        def join(self, rank, address):
            from datetime import timedelta

            import torch.distributed as dist

            dist.init_process_group(
                "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=120)
            )
            self.rank = rank

        def work(self, assignment):
            import torch

            from kdray.engine.context import Context
            from kdray.launch.worker import work

            work(assignment, Context(self.rank, 2, torch.device("cpu")))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    workers = [Worker.remote() for _ in range(2)]
    ray.get([worker.join.remote(rank, address) for rank, worker in enumerate(workers)])

    def run(session, assignment, num_workers, *_):
        assert num_workers == 2
        ray.get([worker.work.remote(assignment) for worker in workers])

    yield run
    for worker in workers:
        ray.kill(worker)


def overrides(config, name, teachers):
    """The config's losses, on digits and small networks, for a few steps."""
    changes = [
        "data.name=digits",
        "data.samples=200",  # batches of 32, the last of an epoch has 8
        "data.batch_size=32",
        "data.augment=[{crop: {padding: 1}}]",
        "student.model=resnet8",
        f"schedule={{epochs: {EPOCHS.get(name, 4)}, name: constant, milestones: [], warmup: 0}}",
        "scale.num_workers=2",
        f"run.name={name}",
    ]
    if config.teacher:
        model = "resnet14" if name in OF_ONE_WIDTH else "wrn_16_2"
        changes += [f"teacher.model={model}", "teacher.train=null", f"teacher.checkpoint={teachers[model]}"]
    # An option that moves would move the term too.
    changes += [f"losses.{name}.schedule.{option}=null" for option in config.losses[name].schedule]
    changes += ["losses.ce.weight=0.0"] * (name in ALONE)
    options = Registry.default().get("distillers", name).cls.Options.model_fields
    changes += [f"losses.{name}.{key}=1" for key in options if key == "init_epochs"]
    return changes


@pytest.mark.parametrize("name", [name for name in FIRST_PARTY if name not in WITHOUT_CONFIG])
def test_it_trains_with_its_own_config(name, group, teachers, lab, monkeypatch):
    path = config_of(name)
    assert path, f"there is no config for {name}"
    config = load_config(path, registry=lab.registry).config
    assert name in config.losses
    config = load_config(path, overrides(config, name, teachers), registry=lab.registry).config
    monkeypatch.setattr(launch, "run_on_ray", group)
    monkeypatch.setattr(launch.Experiment, "_session", lambda self, config: _Here())
    experiment = launch.Experiment(lab.registry, find_project(lab.path), Console(), "test")
    experiment.session = _Here()
    run = experiment.start(config)
    rows = run.rows("epoch")
    own = [sum(v for k, v in row["terms"].items() if k.split("/")[0] == name) for row in [*run.rows("stage"), *rows]]
    assert all(math.isfinite(value) for value in own)
    mine = [row["terms"] for row in rows if any(k.split("/")[0] == name for k in row["terms"])]
    if mine and name not in REGULARISERS:
        first, last = (sum(v for k, v in terms.items() if k.split("/")[0] == name) for terms in (mine[0], mine[-1]))
        assert last < first, f"{name} does not fall: {own}"
    else:  # or it ends with its first stage
        assert (mine or run.rows("stage")) and rows[-1]["loss"] < rows[0]["loss"]


class _Here:
    """Ray is there already, with two workers of one CPU."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def nodes(self):
        return [{"CPU": 2.0}]

    def wait_for_room(self, *_):
        pass
