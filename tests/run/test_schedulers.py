"""What a search that goes on knows of trials before the interruption, and of those that failed."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from kdray.config.tune import TuneConfig
from kdray.launch.tune.schedulers import Asha, Fifo, Median, Scheduler
from kdray.run.folder import RunFolder

JUDGED = {"time_attr": "epoch", "metric": "validation/top1", "mode": "max"}


def row(epoch, top1):
    numbers = {"top1": top1, "top5": 1.0, "loss": 1.0}
    return {"kind": "epoch", "step": 10 * epoch, "epoch": epoch, "validation": numbers, "loss": 1.0, "seconds": 1.0}


class OneOfRay:
    """What schedulers ask of a trial of Ray Tune."""

    def __init__(self, number, lr, ended_at=0):
        self.trial_id, self.config, self.number = f"id{number}", {"optimizer.lr": lr}, number
        self.last_result = {"epoch": ended_at} if ended_at else {}
        self.is_finished = lambda: bool(ended_at)

    def __str__(self):
        return f"{self.number:03}"


@pytest.fixture
def trials(tmp_path):
    """trial(number, accuracies, …): a trial of Ray Tune, and its folder with so many epochs."""
    Scheduler.folder = tmp_path
    Scheduler.settings = TuneConfig(space={"optimizer.lr": {"uniform": [0.0, 1.0]}})

    def trial(number, accuracies, ended=True, lr=0.1, lr_then=0.1):
        folder = tmp_path / "trials" / f"{number:03}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "values.json").write_text(json.dumps({"values": {"optimizer.lr": lr_then}, "history": []}))
        save_file({"w": torch.zeros(3)}, folder / "best.safetensors")
        lines = [json.dumps(row(epoch, value)) + "\n" for epoch, value in enumerate(accuracies, 1)]
        (folder / "metrics.jsonl").write_text("".join(lines))
        if not ended:  # its last checkpoint is one epoch older than its last row
            saved = folder / "checkpoints" / f"step-{10 * (len(accuracies) - 1):09d}"
            saved.mkdir()
            (saved / "state.json").write_text(json.dumps({"step": 10 * (len(accuracies) - 1)}))
        return OneOfRay(number, lr, len(accuracies) if ended else 0)

    return trial


def tell(scheduler, trial, epoch, top1):
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "validation/top1": top1})


def asha():
    return Asha(**JUDGED, max_t=9, grace_period=1, reduction_factor=3)


def test_ashas_rungs_are_full_again(trials):
    """The third trial is worse at its first epoch than two that ended before the interruption."""
    before = [trials(1, [0.5, 0.6, 0.7]), trials(2, [0.6, 0.7, 0.8])]
    resumed = asha()
    for each in before:
        resumed.on_trial_add(None, each)
    heard = asha()  # what a search that was not interrupted knows
    for each in before:
        heard.heard[each.trial_id] = 0
        heard.on_trial_add(None, each)
        for epoch, line in enumerate(RunFolder(heard.folder / "trials" / str(each)).rows("epoch"), 1):
            tell(heard, each, epoch, line["validation"]["top1"])
    assert resumed._brackets[0]._rungs == heard._brackets[0]._rungs and resumed._brackets[0]._rungs[-1][1]
    fresh = OneOfRay(3, 0.1)
    resumed.on_trial_add(None, fresh)
    assert tell(resumed, fresh, 1, 0.1) == Asha.STOP


def test_a_trial_that_goes_on_is_judged_by_what_it_tells_again(trials):
    scheduler, best, running = asha(), trials(1, [0.9, 0.9, 0.9]), trials(2, [0.8, 0.8, 0.1, 0.1], ended=False)
    scheduler.on_trial_add(None, best)
    scheduler.on_trial_add(None, running)
    assert tell(scheduler, running, 2, 0.8) == Asha.CONTINUE and scheduler.heard["id2"] == 2
    assert tell(scheduler, running, 3, 0.1) == Asha.STOP


def test_a_number_with_other_values_is_another_trial(trials):
    scheduler = asha()
    scheduler.on_trial_add(None, trials(1, [0.9, 0.9], lr_then=0.2))
    assert scheduler.heard == {"id1": 0} and not any(rung for _, rung in scheduler._brackets[0]._rungs)


def test_the_median_is_of_all(trials):
    scheduler = Median(**JUDGED, grace_period=1, min_samples_required=3)
    for number in range(1, 4):
        scheduler.on_trial_add(None, trials(number, [0.7, 0.8]))
    fresh = OneOfRay(4, 0.1)
    scheduler.on_trial_add(None, fresh)
    assert tell(scheduler, fresh, 1, 0.1) == Median.STOP


@pytest.mark.parametrize("state, begun_again", [("failed", False), ("running", True)])
def test_an_error_of_its_own_is_not_tried_again(trials, state, begun_again):
    scheduler, trial, stopped = Fifo(), trials(1, [0.5], ended=False), []
    controller = SimpleNamespace(stop_trial=stopped.append)
    scheduler.on_trial_add(controller, trial)
    RunFolder(scheduler.folder / "trials" / "001").set_status(state)
    scheduler.on_trial_error(controller, trial)
    scheduler.on_trial_add(controller, trial)
    assert (stopped == []) == begun_again
