"""A teacher in actors of its own says what the live one says, whatever is asked of it and whoever dies."""

import time

import pytest

from kdray.config.schema import PlacementConfig
from kdray.errors import ConfigError
from kdray.launch import experiment
from kdray.launch.placement import TeacherPool, place

LOSSES = {
    "ce": {},
    "kd": {"temperature": 4.0},
    "at": {},  # feature maps
    "srrl": {},  # the head and the last map
    "crld": {"weight": 0.1},  # a further view
}


def distil(lab, name, weights, workers, placement=None, batch_size=32, **changes):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": weights}
    return lab.run(
        name,
        data={
            "samples": 200,
            "batch_size": batch_size,
            "augment": [{"crop": {"padding": 1}}],
            "extra_views": {"strong": {"augment": [{"cutout": {"size": 2}}]}},
        },
        student={"model": "convnet", "widths": [8, 32]},
        losses=LOSSES,
        teacher=teacher | ({"placement": placement} if placement else {}),
        scale={"num_workers": workers, "cpus_per_worker": 0.5},
        **changes,
    )


def weights(run):
    return (run.path / "student.safetensors").read_bytes()


@pytest.fixture(scope="module")
def live(tmp_path_factory, teacher_weights, ray_session):
    """The run of two workers that have the teacher themselves."""
    from tests.conftest import Lab

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path := tmp_path_factory.mktemp("live"))
        return distil(Lab(path), "live", teacher_weights, 2, schedule={"epochs": 4})


@pytest.mark.thorough
def test_it_says_what_the_live_teacher_says_also_when_it_is_killed(lab, live, teacher_weights, monkeypatch):
    import ray

    killed = []

    class Dying(TeacherPool):
        """One of its actors is killed while the training asks it."""

        def taken(self):
            @ray.remote(num_cpus=0)
            def kill(name):
                time.sleep(2)
                ray.kill(ray.get_actor(name), no_restart=False)
                return name

            killed.append(kill.remote(self.names[0]))
            return super().taken()

    monkeypatch.setattr(experiment, "TeacherPool", Dying)
    run = distil(lab, "placed", teacher_weights, 2, {"workers": 2, "cpus": 0.5}, schedule={"epochs": 4})
    assert ray.get(killed[0])
    assert weights(run) == weights(live)
    assert [row["top1"] for row in run.rows("teacher")] == [row["top1"] for row in live.rows("teacher")]
    assert not ray.util.list_named_actors()


def test_a_training_in_this_process_may_ask_it(lab, teacher_weights, ray_session):
    here = distil(lab, "here", teacher_weights, 0)
    assert weights(distil(lab, "asking", teacher_weights, 0, {"workers": 1, "ahead": 1, "cpus": 0.5})) == weights(here)


def test_actors_that_do_not_fit_are_refused_before_anything_is_written(lab, teacher_weights, ray_session):
    with pytest.raises(ConfigError, match=r"teacher\.placement: 2 actors of 1 CPU, 1 TPU .* room for 0"):
        distil(lab, "none", teacher_weights, 1, {"workers": 2, "resources": {"TPU": 1}})
    cpus = int(sum(node["CPU"] for node in ray_session.nodes()))
    with pytest.raises(ConfigError, match=rf"asked for {2 * cpus} workers .* {cpus - 1} CPUs"):
        distil(lab, "full", teacher_weights, 2 * cpus, {"workers": 1}, batch_size=4 * cpus)
    assert not (lab.path / "runs").exists()


def test_actors_stand_where_their_resources_are():
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}]
    left = place("teacher", PlacementConfig(workers=2, cpus=2, gpus=1), nodes)
    assert left[0]["CPU"] == 4.0 and left[1]["GPU"] == 0.0
