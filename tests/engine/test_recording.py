"""Recorded steps: what is copied into a recording, and what goes beside it. A CUDA graph needs a GPU; here the recorded
work is done again on the same tensors, which shows everything but the graph itself."""

import pytest
import torch
from safetensors.torch import load_file

from kdray.engine import recording, train

CRD = {
    "ce": {},
    "crd": {"weight": {"value": 0.8, "warmup": 1.5}, "dim": 8, "negatives": {"kind": "bank", "count": 16}},
}


@pytest.fixture
def replays(monkeypatch):
    """Counts them."""
    count = []

    def capture(work, generator):
        terms = {}

        def replay():
            count.append(1)
            terms.update(work())

        return replay, terms

    def obstacle(*args):
        why_not = recording.obstacle(*args)
        return "" if why_not == "there is no GPU" else why_not

    monkeypatch.setattr(recording, "capture", capture)
    monkeypatch.setattr(train, "obstacle", obstacle)
    return count


def run(lab, teacher_weights, name, **changes):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    settings = {
        "teacher": teacher,
        "losses": CRD,
        "data": {"samples": 70, "batch_size": 10, "augment": ["crop"]},
        "optimizer": {"lr": 0.05, "momentum": 0.9},
        "schedule": {"epochs": 3, "name": "cosine"},
        "engine": {"ema": 0.9, "log_every": 2},
    }
    return lab.run(name, **{**settings, **changes})


def state(run):
    files = sorted((run.path / "checkpoints").glob("*/*.safetensors"))
    return {f"{file.parent.name} {file.stem} {name}": x for file in files for name, x in load_file(file).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"samples": 75, "batch_size": 10, "augment": ["crop"]}},
        {"data": {"samples": 70, "batch_size": 10, "mix": {"mixup": {}}}, "losses": {"ce": {}, "kd": {}}},
        {"optimizer": {"name": "adamw", "lr": 0.01}},
    ],
    ids=["crd", "short last batch", "mixed", "adamw"],
)
def test_it_trains_as_steps_that_are_not_recorded(lab, teacher_weights, replays, changes, monkeypatch):
    if "optimizer" in changes:  # its state is on the GPU there
        monkeypatch.setattr(recording, "_follows_dials", lambda *_: True)
    recorded = run(lab, teacher_weights, "recorded", **changes)
    assert len(replays) == 3 * 7 - recording.WARM_UP
    monkeypatch.undo()
    plain = run(lab, teacher_weights, "plain", **changes)
    exactly = {"rtol": 0.0, "atol": 0.0} if "optimizer" not in changes else {"rtol": 1e-4, "atol": 1e-6}  # lr in fp32
    for mine, theirs in zip(recorded.rows("step"), plain.rows("step"), strict=True):
        assert mine["terms"] == pytest.approx(theirs["terms"], rel=exactly["rtol"], abs=0)
    theirs = state(plain)
    assert theirs and state(recorded).keys() == theirs.keys()
    for name, x in state(recorded).items():
        torch.testing.assert_close(x, theirs[name], **exactly, msg=name)


def test_what_a_replay_writes_over_is_not_an_input_of_the_next_step(lab, teacher_weights, replays):
    """Inputs are copied into the recording: the feed's own memory stays as it was."""
    from kdray.engine.recording import Inputs, Recorder

    seen = []

    def work(inputs):
        seen.append([x.clone() for x in inputs.tensors()])
        return {"sum": inputs.pictures.sum() + inputs.index.sum()}

    recorder = Recorder(work, torch.Generator(), 4, "ce")
    batches = [torch.randint(0, 255, (4, 1, 2, 2), dtype=torch.uint8) for _ in range(6)]
    kept = [x.clone() for x in batches]
    for number, pictures in enumerate(batches):
        index = torch.arange(4) + number
        terms = recorder(Inputs(pictures, {}, index))
        assert terms["sum"] == kept[number].sum() + index.sum()
    assert len(replays) == 6 - recording.WARM_UP
    assert all(torch.equal(a, b) for a, b in zip(batches, kept))
    assert all(torch.equal(a[0], b) for a, b in zip(seen, kept))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"engine": {"record": False}}, "engine.record is false"),
        ({"engine": {"nonfinite": "skip"}}, "engine.nonfinite"),
        ({"engine": {"accumulate": 2}}, "engine.accumulate"),
        ({"losses": {"ce": {}, "kd": {"schedule": {"temperature": {"start": 1, "warmup": 1}}}}}, "losses.kd.schedule"),
    ],
)
def test_it_says_why_steps_are_not_recorded(lab, teacher_weights, replays, changes, reason, monkeypatch):
    found = []
    asked = train.obstacle
    monkeypatch.setattr(train, "obstacle", lambda *args: found.append(asked(*args)) or found[-1])
    real = recording.obstacle

    def with_gpu(config, context, distillers, optimizer):
        from types import SimpleNamespace

        gpu = SimpleNamespace(device=torch.device("cuda"), world_size=context.world_size)
        return real(config, gpu, distillers, optimizer)

    monkeypatch.setattr(recording, "obstacle", with_gpu)
    run(lab, teacher_weights, "plain", **changes)
    assert reason in found[0] and not replays
