"""Every first-party method trains on two Ray workers with the loss of its own config: that alone moves the student, and
it falls."""

import math
import socket

import pytest
import torch
from safetensors.torch import load_file

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.engine.checkpoint import checkpoints
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
SAMPLE = ("crd", "kd", "ab", "byot", "dml", "ofd", "sskd")
"""Of each kind one: a bank, logits, a stage, heads of its own, a peer, maps, views."""
EPOCHS = {"crd": 16}
"""More than 4 for methods that rise at first: CRD's banks begin with random vectors."""
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


def overrides(path, name, teachers, registry):
    """The config's loss by itself, on digits and small networks, for a few steps. Adam's do not depend on how large its
    weight makes it."""
    loaded = load_config(path, registry=registry)
    config = loaded.config
    assert name in config.losses
    changes = [
        "data.name=digits",
        "data.samples=136",  # batches of 32, the last of an epoch has 8
        "data.batch_size=32",
        "data.augment=[{crop: {padding: 1}}]",
        "student.model=resnet8",
        "optimizer={name: adamw, lr: 0.003, weight_decay: 0}",
        f"schedule={{epochs: {EPOCHS.get(name, 4)}, name: constant, milestones: [], warmup: 0}}",
        "checkpoint={every_epochs: 1, keep: 99}",
        "scale.num_workers=2",
        f"run.name={name}",
    ]
    changes += [
        f"optimizer.{option}=null" for option in ("momentum", "nesterov") if option in loaded.given["optimizer"]
    ]
    if config.teacher:
        model = "resnet14" if name in OF_ONE_WIDTH else "wrn_16_2"
        changes += [f"teacher.model={model}", "teacher.train=null", f"teacher.checkpoint={teachers[model]}"]
    # What else there is would move the student too, and an option that moves the term.
    changes += [f"losses.{other}.weight=0.0" for other in config.losses if other != name]
    changes += [f"losses.{name}.schedule.{option}=null" for option in config.losses[name].schedule]
    options = Registry.default().get("distillers", name).cls.Options.model_fields
    changes += [f"losses.{name}.{key}=4" for key in options if key == "init_epochs"]
    return changes


def own(row, name):
    """The sum of the method's terms; None where it has none."""
    terms = [value for key, value in row["terms"].items() if key.split("/")[0] == name]
    return sum(terms) if terms else None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SAMPLE else pytest.mark.thorough)
        for name in FIRST_PARTY
        if name not in WITHOUT_CONFIG
    ],
)
def test_it_trains_with_its_own_config(name, group, teachers, lab, monkeypatch):
    path = config_of(name)
    assert path, f"there is no config for {name}"
    config = load_config(path, overrides(path, name, teachers, lab.registry), registry=lab.registry).config
    monkeypatch.setattr(launch, "run_on_ray", group)
    monkeypatch.setattr(launch.Experiment, "_session", lambda self, config: _Here())
    experiment = launch.Experiment(lab.registry, find_project(lab.path), Console(), "test")
    experiment.session = _Here()
    run = experiment.start(config)
    values = [[v for row in run.rows(kind) if (v := own(row, name)) is not None] for kind in ("stage", "epoch")]
    assert any(values)
    for series in filter(None, values):
        assert all(map(math.isfinite, series)) and series[-1] < series[0], f"{name} does not fall: {series}"
    kept = checkpoints(run.path / "checkpoints")
    first, last = (load_file(folder / "student.safetensors") for folder in (kept[0], kept[-1]))
    assert any(not torch.equal(first[key], last[key]) for key in first if key.endswith("weight")), (
        f"{name} does not move the student"
    )


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
