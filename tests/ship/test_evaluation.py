"""`kdray evaluate` beyond accuracy: calibration, teachers, other data, corrupted pictures."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.data.build import load_data
from kdray.data.corruptions import CORRUPTIONS, corrupt
from kdray.data.other import with_test_set
from kdray.data.published import digits
from kdray.data.source import Source
from kdray.errors import ConfigError
from kdray.launch.measure import rebuild
from kdray.run import analysis
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.ship.evaluation import Evaluation, Subject
from tests.conftest import Lab


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def run(home, teacher_weights) -> RunFolder:
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    where = {"dir": str(home.path)}
    return home.run("kd", run=where, teacher=teacher, losses={"ce": {}, "kd": {}}, data={"validation": 0.2})


def evaluated(home, run, *overrides, split="test", corrupt=None) -> dict:
    before, config = (load_config(run.config_file, some, registry=home.registry).config for some in ((), overrides))
    subject = Subject(run.weights(), config, "student", run, before)
    return Evaluation(subject, home.registry, find_project().data)(split, corrupt)


def logits_of(home, run, pictures, role="student"):
    config = load_config(run.config_file, registry=home.registry).config
    weights = run.weights() if role == "student" else config.teacher.checkpoint
    found = rebuild(config, home.registry, find_project().data, str(weights), role, torch.device("cpu"))
    with torch.no_grad():
        return found.logits(pictures)


def folder_of(path: Path, names: dict[int, str], most: int = 12, size: int | None = None) -> Path:
    """Test pictures of some digits under names, and no training pictures."""
    test = digits(None, None, "test")
    for digit, name in names.items():
        (path / "test" / name).mkdir(parents=True)
        for i in (test.labels == digit).nonzero()[:most, 0].tolist():
            picture = Image.fromarray(test.images[i, 0].numpy())
            (picture.resize((size, size)) if size else picture).save(path / "test" / name / f"{i:04}.png")
    return path


def others(path: Path, *more: str) -> tuple[str, ...]:
    return ("data.name=folder", f"data.path={path}", "data.channels=1", *more)


def test_the_numbers(home, run):
    found, test = evaluated(home, run), digits(None, None, "test")
    student, teacher = (logits_of(home, run, test.images, role) for role in ("student", "teacher"))
    assert found["top1"] == run.summary["last"]["top1"] and found["top5"] == run.summary["last"]["top5"]
    assert found["loss"] == pytest.approx(run.summary["last"]["loss"], rel=1e-5) and found["samples"] == 360
    calibration = found["calibration"]
    assert calibration["nll"] == found["loss"]
    assert calibration["ece"] == pytest.approx(analysis.reliability(student, test.labels).ece, abs=1e-3)
    data = load_data(
        load_config(run.config_file, registry=home.registry).config.data, 0, home.registry, find_project().data
    )
    held_out = data.validation
    logits = logits_of(home, run, held_out.source.images[held_out.ids])
    scaled = calibration["scaled"]
    assert scaled["temperature"] == pytest.approx(analysis.best_temperature(logits, held_out.labels), rel=1e-2)
    assert scaled["fitted_on"] == "the validation split" and scaled["samples"] == 360
    at = torch.nn.functional.cross_entropy(student.double() / scaled["temperature"], test.labels)
    assert scaled["after"]["nll"] == pytest.approx(float(at), rel=1e-4) and scaled["before"]["nll"] == found["loss"]
    agreement = found["agreement"]["teacher"]
    assert agreement["top1"] == pytest.approx(float((student.argmax(1) == teacher.argmax(1)).double().mean()))
    assert agreement["kl"] == pytest.approx(float(analysis.divergences(teacher, student).mean()), rel=1e-4)
    assert not found["notes"]


def test_other_splits(home, run):
    """The validation split calibrates no more where it is what is measured; of training pictures there is accuracy."""
    found = evaluated(home, run, split="validation")
    assert found["calibration"]["scaled"]["fitted_on"] == "every second picture"
    assert found["calibration"]["scaled"]["samples"] == found["samples"] // 2
    train = evaluated(home, run, split="train")
    assert train["samples"] == 160 and not {"calibration", "agreement"} & train.keys()


def test_a_teacher_that_is_not_here(home, run):
    found = evaluated(home, run, "teacher.checkpoint=/nowhere/gone.safetensors")
    assert found["agreement"] == {}
    (note,) = found["notes"]
    assert note.startswith("left out: agreement with the teacher: ") and "gone.safetensors" in note


def test_other_data_by_class_names(home, run, tmp_path):
    """Some of the network's classes, at other places among the folder's; normalised as the training pictures were."""
    found = evaluated(home, run, *others(folder_of(tmp_path, {7: "7", 3: "3"})))
    test = digits(None, None, "test")
    places = torch.cat([(test.labels == digit).nonzero()[:12, 0] for digit in (3, 7)])
    logits, labels = logits_of(home, run, test.images[places]), test.labels[places]
    assert found["samples"] == 24 and found["top1"] == float((logits.argmax(1) == labels).double().mean())
    assert found["loss"] == pytest.approx(analysis.nll(logits, labels), rel=1e-5)
    assert found["calibration"]["scaled"]["fitted_on"] == "every second picture"  # the validation split is of others
    teacher = logits_of(home, run, test.images[places], "teacher")
    assert found["agreement"]["teacher"]["kl"] == pytest.approx(float(analysis.divergences(teacher, logits).mean()))
    assert found["notes"] == [
        "classes are matched by name: 2 of the 10 that the network knows; an answer that is none of them counts as "
        "wrong"
    ]
    normalised = evaluated(home, run, *others(tmp_path), "data.normalize={mean: [0.1], std: [0.5]}")
    assert normalised["loss"] != pytest.approx(found["loss"], rel=1e-3)


def test_other_classes_are_refused(home, run, tmp_path):
    folder_of(tmp_path / "a", {3: "3", 7: "seven"})
    with pytest.raises(ConfigError, match="does not know: seven") as error:
        evaluated(home, run, *others(tmp_path / "a"))
    assert "digits: 0, 1, 2, 3, 4, … (10)" in str(error.value) and "folder: 3, seven" in str(error.value)
    folder_of(tmp_path / "b", {3: "3"}, size=9)
    with pytest.raises(ConfigError, match=r"pictures of 9×9, and digits.* of 8×8.*resize: {size: 8}"):
        evaluated(home, run, *others(tmp_path / "b"))
    resized = evaluated(home, run, *others(tmp_path / "b", "data.evaluate=[{resize: {size: 8}}]"))
    assert resized["samples"] == 12
    with pytest.raises(ConfigError, match=r"3 channels, and digits.*of 1: data.channels=1"):
        evaluated(home, run, "data.name=folder", f"data.path={tmp_path / 'b'}")
    with pytest.raises(ConfigError, match="not what kd was trained on, of which alone there is --split train"):
        evaluated(home, run, *others(tmp_path / "b"), split="train")
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        evaluated(home, run, *others(tmp_path / "nowhere"))


def test_classes_in_another_order(home, run):
    config = load_config(run.config_file, registry=home.registry).config
    own = load_data(config.data, 0, home.registry, find_project().data)
    names = own.train.source.class_names
    given = Source(torch.arange(10), names[::-1], 1, torch.zeros(10, 1, 8, 8, dtype=torch.uint8))
    matched = with_test_set(own, "other", given, own.evaluate)
    assert matched.test.labels.tolist() == list(range(9, -1, -1)) and matched.train is own.train
    assert given.labels.tolist() == list(range(10)) and given.class_names == names[::-1]  # left as they are
    twice = Source(torch.zeros(1).long(), ["1", "1"], 1, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="names occur twice"):
        with_test_set(own, "other", twice, own.evaluate)


def test_data_that_have_moved(home, tmp_path):
    """The run's own pictures are known by their fingerprint; without them, others cannot be measured."""
    here, there = tmp_path / "here", tmp_path / "there"
    folder_of(here, {1: "one", 2: "two"})
    (here / "train").symlink_to(here / "test")
    data = {"name": "folder", "path": str(here), "channels": 1, "samples": None}
    run = home.run("moving", run={"dir": str(tmp_path / "runs")}, data=data)
    before = evaluated(home, run)
    here.rename(there)
    (there / "train").unlink()
    (there / "train").symlink_to(there / "test")
    assert evaluated(home, run, f"data.path={there}") == before
    assert evaluated(home, run, f"data.path={there}", split="train")["samples"] == 24
    folder_of(tmp_path / "else", {1: "one"})
    with pytest.raises(ConfigError, match=r"folder is not what moving was trained on.*no folder .*here"):
        evaluated(home, run, f"data.path={tmp_path / 'else'}")
    (run.path / "data.json").write_text(json.dumps({"fingerprint": "of others", "recipe": ""}))
    there.rename(here)
    (here / "train").unlink()
    (here / "train").symlink_to(here / "test")
    assert evaluated(home, run)["notes"] == ["the pictures are others than those that the run began with"]


def test_corrupted_pictures(home, run):
    found = evaluated(home, run, corrupt=Console())["corrupted"]
    assert found == evaluated(home, run, corrupt=Console())["corrupted"]
    assert found != evaluated(home, run, "seed=5", corrupt=Console())["corrupted"]
    assert list(found["by_corruption"]) == list(CORRUPTIONS)
    test = digits(None, None, "test")
    for name, severity in (("gaussian_noise", 5), ("contrast", 2)):
        worse = corrupt(test.images, torch.arange(360), name, severity, seed=0)
        logits, of = logits_of(home, run, worse), found["by_corruption"][name]
        assert of["top1"][severity - 1] == pytest.approx(float((logits.argmax(1) == test.labels).double().mean()))
        assert of["loss"][severity - 1] == pytest.approx(analysis.nll(logits, test.labels), rel=1e-4)
        assert of["mean"] == pytest.approx(sum(of["top1"]) / 5)
    assert found["top1"] == pytest.approx(sum(of["mean"] for of in found["by_corruption"].values()) / 7)


def test_logits_that_are_no_numbers(home, run, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(run.weights())
    state = {name: torch.full_like(x, torch.nan) if x.is_floating_point() else x for name, x in state.items()}
    save_file(state, tmp_path / "broken.safetensors")
    config = load_config(run.config_file, registry=home.registry).config
    evaluation = Evaluation(Subject(tmp_path / "broken.safetensors", config), home.registry, find_project().data)
    with pytest.raises(ConfigError, match=r"broken.safetensors: some logits of this network are no finite numbers"):
        evaluation("test")
