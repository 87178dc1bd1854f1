"""The loop in this process: accumulation, averaging, precision, schedules of weights, resuming."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from kdray.engine.train import BatchPlace
from kdray.errors import MismatchError


def weights(run, file="student"):
    return load_file(run.path / f"{file}.safetensors")


def test_accumulation_is_the_mean_of_its_batches(lab):
    """Without batch norm's coupling two batches of 10 with accumulate 2 are one of 20; with it, they are close."""
    one = lab.run(
        "one",
        data={"batch_size": 20, "samples": 40, "augment": []},
        schedule={"epochs": 1},
        engine={"batch_norm": "local"},
    )
    two = lab.run(
        "two", data={"batch_size": 10, "samples": 40, "augment": []}, schedule={"epochs": 1}, engine={"accumulate": 2}
    )
    a, b = weights(one), weights(two)
    steps = [len([r for r in run.rows() if r["kind"] == "epoch"]) for run in (one, two)]
    assert steps == [1, 1]
    # Same samples in the same order, two updates each: directions agree.
    start = weights(lab.run("start", data={"samples": 40}, optimizer={"lr": 1e-12}, schedule={"epochs": 1}))
    da, db = (torch.cat([(w[k] - start[k]).flatten() for k in w if k.endswith("weight")]) for w in (a, b))
    assert torch.cosine_similarity(da, db, dim=0) > 0.9
    assert da.norm() / db.norm() == pytest.approx(1, abs=0.2)


def test_the_rest_of_an_epoch_is_averaged_over_the_batches_it_has(lab):
    """5 batches, 4 an update: the second update has one batch, and must count in full."""
    batches = [BatchPlace(n, 5, 1, torch.tensor([0]), torch.tensor([0]), accumulate=4) for n in range(5)]
    assert [at.batches_of_update for at in batches] == [4, 4, 4, 4, 1]
    assert [at.ends_update for at in batches] == [False, False, False, True, True]


def test_ema_is_what_is_evaluated_and_exported(lab):
    fast = lab.run("fast", engine={"ema": 0.01})
    plain = lab.run("plain")
    slow = lab.run("slow", engine={"ema": 0.999})
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(weights(fast).values(), weights(plain).values()))
    assert not torch.equal(weights(slow)["fc.weight"], weights(plain)["fc.weight"])
    assert slow.summary["last"]["loss"] != plain.summary["last"]["loss"]


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_precisions_train(lab, precision):
    run = lab.run(
        precision,
        data={"batch_size": 10},
        schedule={"epochs": 8},
        optimizer={"lr": 0.1},
        engine={"precision": precision},
    )
    losses = [row["loss"] for row in run.rows("epoch")]
    assert losses[-1] < 0.9 * losses[0]
    kind = torch.float64 if precision == "fp64" else torch.float32
    assert weights(run)["fc.weight"].dtype == kind


def test_adamw_and_clipping(lab):
    run = lab.run(
        "adamw",
        optimizer={"name": "adamw", "lr": 0.02},
        engine={"clip_norm": 0.5},
        data={"batch_size": 10},
        schedule={"epochs": 8},
    )
    losses = [row["loss"] for row in run.rows("epoch")]
    assert losses[-1] < 0.9 * losses[0]


def test_a_weight_schedule_weighs(lab):
    run = lab.run(
        "weights", losses={"ce": {"weight": {"value": 1.0, "start": 0.0, "warmup": 2.0}}}, schedule={"epochs": 3}
    )
    rows = run.rows("epoch")
    assert rows[0]["loss"] < rows[0]["terms"]["ce"]
    assert rows[2]["loss"] == pytest.approx(rows[2]["terms"]["ce"])


def test_validation_chooses_the_best_epoch(lab):
    run = lab.run("validation", data={"validation": 0.2}, schedule={"epochs": 4})
    best = run.summary["best"]
    scores = [row["validation"]["top1"] for row in run.rows("epoch")]
    assert (
        best["split"] == "validation" and best["top1"] == max(scores) and best["epoch"] == scores.index(max(scores)) + 1
    )
    assert best["test_top1"] == run.rows("epoch")[best["epoch"] - 1]["test"]["top1"]


def test_evaluation_of_a_run_gives_its_own_number(lab):
    run = lab.run("measured")
    result = lab.measured(run)
    assert result["top1"] == run.summary["last"]["top1"] and result["samples"] == 360


def test_the_views_of_epochs_repeat_when_asked(lab):
    """With one view and no shuffling to speak of, two epochs see the same pictures; with a view an epoch they do
    not."""
    from kdray.config.load import load_config
    from kdray.data.build import load_data
    from kdray.data.feed import Feed
    from kdray.registry import Registry

    config = load_config(lab.config("views"), registry=Registry.default()).config
    data = load_data(config.data, 0, Registry.default(), lab.path)
    feed = Feed(data.train, data.augment, 1, torch.device("cpu"))
    views = [next(iter(feed.batches([torch.arange(32)], view))) for view in (0, 0, 1)]
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


def test_a_checkpoint_of_another_config_is_refused(lab):
    run = lab.run("changed")
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("lr: 0.05", "lr: 0.06"))
    run.set_status("interrupted")
    from kdray.config.project import find_project
    from kdray.launch.experiment import Experiment
    from kdray.registry import Registry
    from kdray.run.console import Console

    with pytest.raises(MismatchError, match="another configuration"):
        Experiment(Registry.default(), find_project(), Console(), "").resume(run)


def test_the_run_folder_is_complete(lab):
    run = lab.run("complete", engine={"log_every": 2})
    for name in (
        "config.yaml",
        "command.txt",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "MODEL_CARD.md",
        "student.safetensors",
        "best.safetensors",
    ):
        assert (run.path / name).stat().st_size > 0, name
    assert list((run.path / "tensorboard").iterdir())
    assert {"kdray", "torch", "ray"} <= json.loads((run.path / "environment.json").read_text())["packages"].keys()
    assert {row["kind"] for row in run.rows()} == {"step", "epoch", "checkpoint"}
    assert not list(run.path.glob(".writing*"))


def test_the_model_card_says_what_the_student_is_made_of(lab, teacher_weights):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    data = {"samples": 100, "leave_out": [3, 7], "validation": 0.2}
    run = lab.run("carded", teacher=teacher, losses={"ce": {}, "kd": {}}, data=data)
    card = (run.path / "MODEL_CARD.md").read_text()
    for file in ("student", "best"):
        digest = hashlib.sha256((run.path / f"{file}.safetensors").read_bytes()).hexdigest()
        assert (
            f"`{file}.safetensors`: weights of the {'last' if file == 'student' else 'best'} epoch, sha256 `{digest}`"
            in card
        )
    assert f"fingerprint of its pictures and classes: `{run.data}`" in card
    for line in (
        "100 training samples, drawn evenly over the classes",
        "20% of the training set was held out for validation",
        "trained on nothing of the classes 3, 7",
        f"teacher: weights `{teacher_weights}`",
    ):
        assert f"\n- {line}\n" in card, line
    assert "chosen on the test set itself" not in card and "wrong class" not in card


def pictures(folder, hue):
    """A folder of pictures in two classes, of a hue."""
    from PIL import Image

    for split, count in (("train", 12), ("test", 4)):
        for c in (0, 1):
            place = folder / split / str(c)
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (hue, 20 * i, 255 * c)).save(place / f"{i}.png")


def test_a_teacher_trained_on_other_pictures_is_not_reused(lab):
    common = dict(
        student={"model": "convnet", "widths": [4]},
        optimizer={"lr": 0.05},
        schedule={"epochs": 1},
        scale={"num_workers": 0},
    )
    data = {"name": "folder", "batch_size": 8, "normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (lab.path / "teacher.yaml").write_text(json.dumps({"name": "t", "data": data, "losses": {"ce": {}}, **common}))
    teacher = {"model": "convnet", "widths": [4], "train": "teacher.yaml"}
    main = {
        "name": "main",
        "data": data,
        "teacher": teacher,
        "losses": {"ce": {}, "kd": {}},
        "baseline": True,
        **common,
    }
    (lab.path / "main.yaml").write_text(json.dumps(main))
    from kdray.config.load import load_config
    from kdray.config.project import find_project
    from kdray.launch.experiment import Experiment
    from kdray.registry import Registry
    from kdray.run.console import Console

    experiment = Experiment(Registry.default(), find_project(lab.path), Console(), "")
    used = []
    for name, hue in (("red", 250), ("again", 250), ("dark", 10)):
        place = lab.path / ("red" if name == "again" else name)
        if not place.exists():
            pictures(place, hue)
        overrides = [f"data.path={place}", f"run.name={name}"]
        run = experiment.start(load_config(lab.path / "main.yaml", overrides, registry=Registry.default()).config)
        used.append((run.summary["teacher"]["run"], run.summary["alone"]["name"]))
    assert used[0] == used[1]
    assert used[0][0] != used[2][0] and used[0][1] != used[2][1]
    # Nor does a run go on with pictures that have changed.
    run = experiment.project.runs / "dark"
    from kdray.run.folder import RunFolder

    RunFolder(run).set_status("interrupted")
    (lab.path / "dark" / "train" / "0" / "0.png").unlink()
    with pytest.raises(MismatchError, match="not the one that this run began with"):
        experiment.resume(RunFolder(run))


def test_what_the_student_has_no_part_in_comes_first(lab, teacher_weights, monkeypatch):
    """And a loss that prepares nothing ahead computes the same."""
    cls = lab.registry.get("distillers", "crd").cls
    prepare, forward, seen = cls.prepare, cls.forward, []

    def run(name, ahead):
        def watched(self, *given):
            seen.append(self.prepared is not None)
            with monkeypatch.context() as patch:
                patch.setattr(cls, "prepare", prepare)
                return forward(self, *given)

        monkeypatch.setattr(cls, "forward", watched)
        monkeypatch.setattr(cls, "prepare", prepare if ahead else lambda *_: None)
        teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
        crd = {"dim": 8, "negatives": {"kind": "bank", "count": 16}}
        return weights(lab.run(name, teacher=teacher, losses={"ce": {}, "crd": crd}))

    ahead = run("ahead", ahead=True)
    assert seen and all(seen)
    seen.clear()
    later = run("later", ahead=False)
    assert seen and not any(seen)
    assert all(torch.equal(ahead[name], later[name]) for name in ahead)
