"""`kdray train --profile`."""

import json
import math

import pytest
from safetensors.torch import load_file

from kdray import clock
from kdray.clock import Part

TEACHER = {"name": "big", "student": {"model": "convnet", "widths": [8]}, "losses": {"ce": {}}}
DISTILS = {
    "teacher": {"model": "convnet", "widths": [8], "train": "big.yaml"},
    "losses": {"ce": {}, "kd": {}},
    "schedule": {"epochs": 8},
    "baseline": True,
}


@pytest.fixture
def clocks(monkeypatch) -> list[clock.Clock]:
    """Those of the commands."""
    made = []

    class Noted(clock.Clock):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(clock, "Clock", Noted)
    return made


def test_the_parts_of_all_runs_add_up_to_the_command(desk, clocks):
    desk.config("big.yaml", **TEACHER)
    result = desk("train", desk.config(**DISTILS), "--profile")
    assert result.code == 0, result.err
    (made,) = clocks
    teacher, alone = _others(desk.runs())
    assert set(made.seconds) == {"", "small", teacher, alone}
    everything = [value for of_run in made.seconds.values() for value in of_run.values()]
    assert min(everything) >= 0
    began = made.since - sum(everything)  # of the process: `since` is the command's end
    assert math.isclose(began, clock.process_began(), abs_tol=0.05)
    here = {Part.DATA, Part.NETWORKS, Part.FIRST, Part.STEPS, Part.PICTURES, Part.EVALUATION, Part.CHECKPOINTS}
    for run in ("small", teacher, alone):
        assert here | {Part.TRACING, Part.REST} <= set(made.seconds[run])
        assert not {Part.RAY, Part.WORKERS} & set(made.seconds[run])
    for name in (*here, Part.STARTING, "all", "what took most of the traced steps of small"):
        assert name in result.err
    assert "where the time went" not in result.out  # results alone


def _others(runs: list[str]) -> tuple[str, str]:
    (teacher,) = (name for name in runs if name.startswith("big-"))
    (alone,) = (name for name in runs if name.startswith("small-alone-"))
    return teacher, alone


def test_the_trace_shows_the_convolutions_of_some_steps(desk):
    run = desk.trained("--profile", "schedule.epochs=8")
    events = json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    named = [event.get("name") for event in events]
    steps = sum(str(name).startswith("Optimizer.step") for name in named)
    assert 0 < steps < 16  # of 8 epochs of 2
    # Its one convolution, forward; not those of an evaluation between two steps.
    assert named.count("aten::conv2d") == steps
    (row,) = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"kind": "profile"' in line
    ]
    assert "aten::mkldnn_convolution" in {operator["name"] for operator in row["operators"]}


def test_it_changes_no_weights(desk):
    plain, profiled = desk.trained(name="plain"), desk.trained("--profile", name="profiled")
    one, other = (load_file(run / "student.safetensors") for run in (plain, profiled))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert not (plain / "profile").exists()
    assert clock.so_far() == {}  # it is off again


def test_a_dry_run_has_nothing_to_measure(desk):
    assert "--profile" in desk.refused("train", desk.config(), "--profile", "--dry-run")


def test_what_another_process_did_is_taken_from_the_time_that_was_waited_for_it():
    with clock.running() as made, clock.of_run("one"), clock.timed(Part.WORKERS):
        clock.tell({Part.STEPS: 2.0, Part.EVALUATION: 1.0})
    assert made.seconds["one"][Part.STEPS] == 2.0 and made.seconds["one"][Part.EVALUATION] == 1.0
    assert -3.0 <= made.seconds["one"][Part.WORKERS] < 0.0
