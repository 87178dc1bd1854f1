"""A student that begins as a pruned network: once begun, its run needs nothing but its own folder."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdray.config.load import digest, load_config
from kdray.config.project import find_project
from kdray.data.published import digits
from kdray.engine.checkpoint import checkpoints
from kdray.errors import ConfigError
from kdray.launch.experiment import Experiment
from kdray.launch.pruned import FILE
from kdray.launch.tune import Tune, prepare
from kdray.run.console import Console
from kdray.run.folder import RunFolder
from kdray.ship.export import export, student_of
from kdray.ship.formats import FORMATS, read
from tests.conftest import Lab

FULL = {"model": "convnet", "widths": [16, 32]}


def pruned(source, share=0.5, **more) -> dict:
    return {**FULL, "checkpoint": str(source), "prune": share, **more}


def experiment(lab: Lab) -> Experiment:
    return Experiment(lab.registry, find_project(lab.path), Console(), "test")


def cut(run: RunFolder, copy: Path, keep: int) -> RunFolder:
    """A copy of a run that was interrupted after its first `keep` checkpoints."""
    shutil.copytree(run.path, copy)
    for path in checkpoints(copy / "checkpoints")[keep:]:
        shutil.rmtree(path)
    for file in ("student.safetensors", "best.safetensors", "summary.json"):
        (copy / file).unlink(missing_ok=True)
    found = RunFolder(copy)
    found.set_status("interrupted")
    return found


@pytest.fixture
def source(tmp_path, teacher_weights) -> Path:
    """To be deleted by a test."""
    return Path(shutil.copytree(Path(teacher_weights).parent, tmp_path / "source"))


def test_it_begins_with_the_pruned_weights(lab, source):
    config = load_config(lab.config("small", student=pruned(source)), registry=lab.registry).config
    assert config.student.checkpoint == str(source / "student.safetensors"), "the folder of a run is its student"
    run = lab.run("small", student=pruned(source))
    begins, ends = (load_file(run.path / file) for file in (FILE, "student.safetensors"))
    assert {key: value.shape for key, value in begins.items()} == {key: value.shape for key, value in ends.items()}
    assert begins["stages.0.conv.weight"].shape == (8, 1, 3, 3) and begins["fc.weight"].shape == (10, 16)
    # Each filter that is left is one of the trained network's.
    whole = load_file(source / "student.safetensors")["stages.0.conv.weight"]
    assert all(any(torch.equal(mine, one) for one in whole) for mine in begins["stages.0.conv.weight"])
    assert run.summary["parameters"] == sum(
        v.numel() for k, v in ends.items() if "running" not in k and "num_" not in k
    )
    section = yaml.safe_load(run.config_file.read_text())["student"]
    assert section["checkpoint"] == FILE and section["prune"] is None
    assert section["pruned"]["share"] == 0.5 and section["pruned"]["widths"]["stages.1.bn"] == [16]


def test_it_goes_on_without_its_source_and_elsewhere(lab, source):
    """Bit for bit, from a checkpoint and from the very beginning, in a folder that was moved."""
    whole = lab.run("whole", student=pruned(source), checkpoint={"keep": 9})
    shutil.rmtree(source)
    for keep in (1, 0):
        moved = cut(whole, lab.path / "moved" / f"after-{keep}", keep)
        experiment(lab).resume(moved)
        ours, theirs = (load_file(run.path / "student.safetensors") for run in (whole, moved))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.thorough
def test_several_workers_have_the_same_network(lab, source):
    """The widths travel in the config: nobody prunes for himself."""
    options = {"student": pruned(source), "engine": {"precision": "fp64"}, "data": {"samples": 160}}
    one, two = (lab.run(f"of-{n}", scale={"num_workers": n}, **options) for n in (0, 2))
    ours, theirs = (load_file(run.path / "student.safetensors") for run in (one, two))
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-8, atol=1e-10)


def test_it_is_evaluated_exported_and_read_again(lab, source):
    run = lab.run("small", student=pruned(source), run={"dir": str(lab.path)})
    shutil.rmtree(source)
    data_root = find_project().data
    assert lab.measured(run)["top1"] == pytest.approx(run.summary["last"]["top1"])
    pictures = digits(None, None, "test").images[:5]
    ours, _ = student_of(run, False, lab.registry, data_root)
    for name in FORMATS:
        file = export(run, name, None, False, lab.registry, data_root)["file"]
        runs, facts = read(Path(file))
        with torch.no_grad():
            torch.testing.assert_close(runs(pictures), ours(pictures), rtol=1e-4, atol=1e-5)
        assert facts["network"]["pruned"]["widths"]["stages.0.conv"] == [8, 1]


def test_its_config_trains_again(lab, source):
    first = lab.run("first", student=pruned(source))
    shutil.rmtree(source)
    config = load_config(first.config_file, ["run.name=again"], registry=lab.registry).config
    again = experiment(lab).start(config)
    shutil.rmtree(first.path)
    assert (again.path / FILE).exists()
    assert digest(load_config(again.config_file, registry=lab.registry).config) == digest(config)


def test_the_student_alone_begins_alike_and_is_trained_once(lab, source, teacher_weights):
    teacher = {**FULL, "checkpoint": teacher_weights}
    options = {"student": pruned(source), "teacher": teacher, "baseline": True, "schedule": {"epochs": 1}}
    one, two = (lab.run("small", losses={"ce": {}, loss: {}}, run={"name": loss}, **options) for loss in ("kd", "rkd"))
    assert one.summary["alone"]["name"] == two.summary["alone"]["name"]
    alone = RunFolder(one.path.parent / one.summary["alone"]["name"])
    ours, theirs = (load_file(run.path / FILE) for run in (one, alone))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_twice(lab, source):
    """A run's config is extended, and its student pruned again."""
    first = lab.run("first", student=pruned(source))
    file = lab.path / "second.yaml"
    file.write_text(f"extends: {first.config_file}\nname: second\nstudent: {{checkpoint: {first.path}, prune: 0.5}}\n")
    second = experiment(lab).start(load_config(file, registry=lab.registry).config)
    assert load_file(second.path / FILE)["stages.1.conv.weight"].shape == (8, 4, 3, 3)


def test_the_same_widths_from_scratch(lab, source):
    first = lab.run("first", student=pruned(source))
    config = load_config(first.config_file, ["run.name=fresh", "student.checkpoint=null"], registry=lab.registry).config
    fresh = experiment(lab).start(config)
    assert fresh.summary["parameters"] == first.summary["parameters"] and not (fresh.path / FILE).exists()
    assert fresh.summary["last"] != first.summary["last"]


def test_it_may_teach(lab, source):
    """By its file, with the section of its run's config that says how wide it is."""
    first = lab.run("first", student=pruned(source))
    section = yaml.safe_load(first.config_file.read_text())["student"]["pruned"]
    teacher = {**FULL, "checkpoint": str(first.path), "pruned": section}
    run = lab.run("taught", student={"model": "convnet", "widths": [4]}, teacher=teacher, losses={"ce": {}, "kd": {}})
    assert run.summary["teacher"]["top1"] == pytest.approx(first.summary["last"]["top1"])
    assert run.summary["teacher"]["parameters"] == first.summary["parameters"]


def test_what_is_refused(lab, source, tmp_path):
    with pytest.raises(
        ConfigError, match="student: prune takes channels out of a trained network: give its checkpoint"
    ):
        load_config(lab.config("a", student={**FULL, "prune": 0.5}), registry=lab.registry)
    with pytest.raises(ConfigError, match=r"must be less than 1, not 1\.5"):
        load_config(lab.config("a", student=pruned(source, 1.5)), registry=lab.registry)
    lab.config("narrow", student=pruned(source))
    with pytest.raises(ConfigError, match=r"narrow.yaml prunes its student, and a teacher is trained whole"):
        lab.run("b", teacher={**FULL, "train": str(lab.path / "narrow.yaml")}, losses={"ce": {}, "kd": {}})
    assert not (lab.path / "runs").exists()


def test_a_search_prunes_nothing(lab, source):
    file = lab.config("t", student=pruned(source), data={"validation": 0.2}, tune={"trials": 2, "searcher": "random"})
    with pytest.raises(ConfigError, match="Prune once, by `kdray train`"):
        Tune(lab.registry, find_project(lab.path), Console(), "test").start(prepare(file, [], lab.registry))


def test_configs_without_it_keep_their_digest(lab):
    """Of a run from before there was pruning, as it stands in that run's data.json."""
    config = load_config(lab.config("small"), registry=lab.registry).config
    assert digest(config) == "f5cebb7298b3ae6b5b164cec0514e992040261692bc776b9beeb585f8479ee15"
