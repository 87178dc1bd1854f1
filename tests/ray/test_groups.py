"""Two groups of workers side by side: the driver of one dies, and only what was its own is freed."""

import time

import pytest
import ray
from ray.util import placement_group_table

from kdray.config.load import load_config
from kdray.data.build import load_data
from kdray.engine.train import Job
from kdray.launch.code import Code
from kdray.launch.groups import sweep_orphans
from kdray.launch.ray_train import run_on_ray
from kdray.launch.session import RaySession
from kdray.launch.worker import Assignment
from kdray.run.folder import RunFolder


@ray.remote(num_cpus=0)
class Driver:
    """What a trial of a search is: a process that starts workers and waits for them."""

    def run(self, assignment):
        with RaySession() as session:
            run_on_ray(session, assignment, num_workers=2, cpus=0.5, use_gpu=False, max_failures=0)


def start(lab, name):
    config = load_config(lab.config(name, schedule={"epochs": 100_000}), registry=lab.registry).config
    data = load_data(config.data, config.seed, lab.registry, lab.path).fingerprint()
    made = {"config_text": "", "command": "", "plugins": [], "data": data, "recipe": ""}
    run = RunFolder.create(lab.path / name, **made)
    job = Job(config, run.path, lab.path, data=data)
    driver = Driver.remote()
    driver.run.remote(Assignment(job, Code.of(lab.registry), run.new_token()))
    return run, driver


def wait(until, seconds=240):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def held():
    """The groups that are not removed."""
    return {key for key, group in placement_group_table().items() if group["state"] != "REMOVED"}


def epochs(run):
    return len(run.rows("epoch"))


@pytest.mark.thorough
def test_a_dead_driver_frees_its_workers_and_no_others(lab, ray_session):
    (stays, other), (goes, driver) = start(lab, "stays"), start(lab, "goes")
    wait(lambda: epochs(stays) and epochs(goes))
    both = held()
    assert len(both) == 2 and sweep_orphans() == 0 and held() == both
    ray.kill(driver)
    wait(sweep_orphans)
    assert len(held()) == 1
    gone, before = epochs(goes), epochs(stays)
    wait(lambda: epochs(stays) > before + 5)
    assert epochs(goes) <= gone + 1  # its workers have ended
    ray.kill(other)
    wait(sweep_orphans)
    assert not held()
    wait(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"])
    # No actor is left behind: not the controller, not a worker, not one of Ray's own that would wait for ever.
    wait(
        lambda: (
            not [
                a
                for a in ray._private.state.actors().values()
                if a["State"] == "ALIVE" and "Auto" not in a["ActorClassName"]
            ]
        )
    )
