"""Each verb as it should go."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from PIL import Image

ROOT = Path(__file__).parents[2]
VERBS = (
    *("train", "precompute", "resume", "evaluate", "report", "compare", "show", "validate", "list", "runs", "plugins"),
    *("schema", "doctor"),
)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_help_is_quick():
    """Neither torch nor Ray is imported for it."""
    code = (
        "import sys; sys.argv = ['kdray', '--help']\n"
        "from kdray.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'ray', 'pydantic', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    for verb in VERBS:
        assert verb in result.stdout


def test_training_in_one_process_waits_for_no_compiler(desk):
    """torch's own takes longer to import than the rest of torch, and torchvision and torch's optimizers bring it in."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kdray", "train", desk.config()],
        cwd=desk.path,
        capture_output=True,
        text=True,
    )
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert result.returncode == 0 and "torch.optim" in imported
    assert not {"torch._dynamo", "torchvision", "torch.distributed.tensor", "ray"} & imported


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(desk, verb):
    shown = desk(verb, "--help")
    assert shown.code == 0 and "Example" in shown.out and f"kdray {verb}" in shown.out


def test_a_verb_that_is_none(desk):
    result = desk("trian")
    assert result.code == 2 and "Did you mean 'train'?" in result.err


def test_train_prints_a_table(desk):
    result = desk("train", desk.config())
    assert result.code == 0
    assert "94" in result.out and "accuracy on the test set" in result.out
    assert f"run: {desk.path / 'runs/small'}" in result.out
    assert "1/1  loss" in result.err


def test_train_over_seeds(desk):
    result = desk("train", desk.config(), "--seeds", "0,1", "--json")
    first, second = json.loads(result.out)
    assert (first["name"], first["seed"], second["name"], second["seed"]) == ("small-seed0", 0, "small-seed1", 1)
    shown = desk("train", desk.config(), "--seeds", "2,3")
    assert "2 seeds, mean ± deviation" in shown.out


def test_the_files_of_a_run(desk):
    run = desk.trained()
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("config.yaml", "command.txt", "environment.json", "status.json", "summary.json", "metrics.jsonl"),
        *("tensorboard", "checkpoints", "student.safetensors", "best.safetensors", "MODEL_CARD.md"),
    }
    assert run.joinpath("command.txt").read_text() == "kdray train base.yaml --name base\n"
    environment = json.loads(run.joinpath("environment.json").read_text())
    assert environment["packages"]["torch"] and {"ce", "kd", "crd"} <= {p["name"] for p in environment["plugins"]}


def test_a_teacher_is_trained_once(desk):
    desk.config("recipe.yaml", name="tutor", student={"model": "convnet", "widths": [8]})
    teacher = {"model": "convnet", "widths": [8], "train": "recipe.yaml"}
    config = desk.config(teacher=teacher, losses={"kd": {}}, baseline=True)
    first = desk("train", config)
    assert first.code == 0 and "training the teacher: tutor-" in first.err
    for row in ("teacher", "student alone", "distilled student"):
        assert row in first.out
    second = desk("train", config, "--name", "again")
    assert "training the teacher: done already" in second.err and "alone: done already" in second.err


def test_a_teacher_trained_by_hand_is_the_teacher(desk):
    """By its recipe and its data, whatever its name; a run of another recipe is not it."""
    recipe = desk.config("recipe.yaml", name="tutor", student={"model": "convnet", "widths": [8]})
    config = desk.config(teacher={"model": "convnet", "widths": [8], "train": recipe}, losses={"kd": {}})
    assert desk("train", recipe, "--name", "other", "optimizer.lr=0.01").code == 0
    assert f"trained first by {desk.path / recipe}" in desk("train", config, "--dry-run").out
    assert desk("train", recipe, "--name", "by-hand").code == 0
    assert f"trained already: {desk.path / 'runs/by-hand'}" in desk("train", config, "--dry-run").out
    result = desk("train", config)
    assert f"training the teacher: done already, {desk.path / 'runs/by-hand'}" in result.err
    assert desk.runs() == ["by-hand", "other", "small"]


def test_dry_run(desk):
    plan = desk("train", desk.config(), "--dry-run")
    assert plan.code == 0 and "1 epochs of 2 steps" in plan.out
    as_json = json.loads(desk("train", desk.config(), "--dry-run", "--json").out)
    assert as_json["steps_per_epoch"] == 2 and as_json["student"] == {"model": "convnet", "parameters": 94}
    assert not desk.path.joinpath("runs").exists()


def test_evaluate(desk):
    run = desk.trained()
    accuracy = json.loads(run.joinpath("summary.json").read_text())["last"]["top1"]
    weights = str(run / "student.safetensors")
    for arguments in (["base"], [str(run)], ["base", "--best"], [weights, "--config", "base.yaml"]):
        result = json.loads(desk("evaluate", *arguments, "--json").out)
        assert (result["top1"], result["samples"]) == (accuracy, 360)
    assert "of train" in desk("evaluate", "base", "--split", "train").out
    teacher = {"model": "convnet", "widths": [4], "checkpoint": weights}
    config = desk.config(teacher=teacher, losses={"kd": {}})
    result = json.loads(desk("evaluate", weights, "--config", config, "--as", "teacher", "--json").out)
    assert result["top1"] == accuracy


def test_evaluate_shows_more_than_accuracy(desk):
    weights = str(desk.trained() / "student.safetensors")
    config = desk.config(teacher={"model": "convnet", "widths": [4], "checkpoint": weights}, losses={"kd": {}})
    assert desk("train", config, "--name", "taught").code == 0
    result = desk("evaluate", "taught", "--corrupt")
    assert result.code == 0 and "12,600/12,600" in result.err
    lines = result.out.splitlines()
    assert "top-1" in lines[0] and lines[0].endswith("360 samples of test") and lines[1].startswith("ECE ")
    assert "fitted on every second picture" in lines[2] and lines[3].startswith("agreement with the teacher: ")
    rows = {line.split()[0]: line.split()[1:] for line in lines[4:] if line.split()}
    assert rows["1"] == ["2", "3", "4", "5", "mean"] and len(rows["jpeg_compression"]) == len(rows["mean"]) == 6
    assert {"calibration", "agreement"} <= json.loads(desk("evaluate", "taught", "--json").out).keys()
    (desk.path / "runs/base/student.safetensors").unlink()
    result = desk("evaluate", "taught")
    assert result.code == 0 and result.err.startswith("left out: agreement with the teacher: ")


def test_evaluate_on_other_data(desk):
    desk.trained()
    (desk.path / "pictures/test/cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(desk.path / "pictures/test/cat/1.png")
    message = desk.refused("evaluate", "base", "data.name=folder", "data.path=pictures", "data.channels=1")
    assert "1 of its classes the network does not know: cat" in message
    (desk.path / "pictures/test/cat").rename(desk.path / "pictures/test/4")
    result = desk("evaluate", "base", "data.name=folder", "data.path=pictures", "data.channels=1")
    assert result.code == 0 and "1 samples of test" in result.out and "matched by name: 1 of the 10" in result.err
    assert "nan" not in result.out


def test_evaluate_what_cannot_be(desk):
    weights = str(desk.trained() / "student.safetensors")
    assert "--config CONFIG" in desk.refused("evaluate", weights)
    assert "Did you mean 'base'?" in desk.refused("evaluate", "bas")
    assert "set data.validation" in desk.refused("evaluate", "base", "--split", "validation")
    assert "are for files of weights" in desk.refused("evaluate", "base", "--as", "teacher")
    assert "--best is for runs" in desk.refused("evaluate", weights, "--config", "base.yaml", "--best")


def test_show_loads_again(desk):
    config = desk.config(losses={"ce": {}, "kd": {}}, teacher={"model": "convnet", "widths": [4], "checkpoint": "x.pt"})
    shown = desk("show", config, "optimizer.lr=1e-3").out
    assert "# command line" in shown and f"# {config}:" in shown and "# default" in shown
    desk.write("again.yaml", shown)
    plain = desk("show", config, "optimizer.lr=1e-3", "--no-origin").out
    assert desk("show", "again.yaml", "--no-origin").out == plain
    assert yaml.safe_load(shown) == yaml.safe_load(plain)


def test_validate_tells_of_every_file(desk):
    good = desk.config("good.yaml")
    bad = [desk.config("bad1.yaml", optimizer={"lrr": 1}), desk.config("bad2.yaml", schedule={"epoch": 1})]
    result = desk("validate", bad[0], good, bad[1])
    assert result.code == 2
    assert result.out == "good.yaml: ok\n"
    assert "bad1.yaml:" in result.err and "bad2.yaml:" in result.err


def test_validate_with_values_replaced(desk):
    config = desk.config()
    assert desk("validate", config, "data.batch_size=3").out == f"{config}: ok\n"
    assert "command line: data.batch_size: must be greater than 0" in desk.refused(
        "validate", config, "data.batch_size=0"
    )
    assert "name the config file" in desk.refused("validate", "data.batch_size=3")


def test_validate_build(desk):
    config = desk.config(data={"name": "digits", "batch_size": 50, "samples": 10**6})
    assert desk("validate", config).code == 0
    assert "digits has 1437" in desk.refused("validate", config, "--build")


def test_the_configs_of_the_repository_are_valid(desk):
    result = desk("validate", *CONFIGS)
    (line,) = result.err.splitlines()  # that file is there to be extended, and says so
    assert "configs/base.yaml:9:1: teacher: none of the losses (ce) looks at this teacher" in line
    assert result.out.count(": ok\n") == len(CONFIGS) - 1


def test_the_schema_holds_for_the_configs_of_the_repository(desk):
    schema = json.loads(desk("schema").out)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text())
        if "extends" not in config:  # the others are not whole
            validator.validate(config)
    assert not validator.is_valid({**yaml.safe_load(CONFIGS[0].read_text()), "sede": 1})


@pytest.mark.parametrize(
    "kind", ["distillers", "models", "datasets", "augmentations", "optimizers", "trackers", "configs", "runs"]
)
def test_list(desk, kind):
    desk.config("configs/mine.yaml")
    desk.trained(name="z-first")
    desk.trained(name="a-second")
    rows = json.loads(desk("list", kind, "--json").out)
    names = [row["name"] for row in rows]
    known = {"distillers": "crd", "models": "resnet8x4", "datasets": "digits", "augmentations": "crop"}
    known |= {"optimizers": "sgd", "trackers": "tensorboard", "configs": "mine"}
    if kind == "runs":
        assert names == ["z-first", "a-second"]  # the newest last
        assert [row["path"] for row in rows] == [str(desk.path / "runs" / name) for name in names]
    else:
        assert known[kind] in names
    shown = desk("list", kind)
    assert shown.code == 0 and all(name in shown.out for name in names)


def test_the_table_of_distillers_fits_100_columns(desk, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = desk("list", "distillers").out
    assert max(map(len, shown.splitlines())) <= 100
    assert {"crd", "embedding", "batch", "75.51"} <= set(shown.split())


def test_only_distillers_have_a_page(desk):
    assert desk("list", "distillers", "--markdown").out.startswith("# Methods\n")
    assert "--markdown is for `kdray list distillers`" in desk("list", "models", "--markdown").err


def test_a_piped_list_has_a_line_a_row(desk, monkeypatch):
    rows = json.loads(desk("list", "distillers", "--json").out)
    monkeypatch.delenv("COLUMNS")
    lines = desk("list", "distillers").out.splitlines()
    for row in rows:
        assert any(line.split()[:1] == [row["name"]] and row["summary"] in line for line in lines)


def test_a_name_to_block_that_no_plugin_has(desk, monkeypatch):
    desk.write("p.py", "")
    desk.write("kdray.toml", '[plugins]\nload = ["p.py"]\n')
    monkeypatch.setenv("KDRAY_BLOCK", "p.py")
    told = desk("validate", desk.config()).err
    assert told == "warning: 'p.py' is to be blocked, but no plugin is named so. Did you mean 'p'?\n"


def test_the_error_of_a_plugin_is_shown_whole(desk, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    desk.write("broken.py", "1 / 0")
    desk.write("kdray.toml", '[plugins]\nload = ["broken.py"]\n')
    assert (
        f"local:broken failed (import): ZeroDivisionError: division by zero ({desk.path / 'broken.py'}:1)"
        in desk("plugins").out
    )


def test_plugins_and_doctor(desk):
    assert {"ce", "kd", "crd"} <= {row["name"] for row in json.loads(desk("plugins", "--json").out)}
    assert "all is well" in desk("doctor", "--num-workers", 0).out
    desk.write("broken.py", "1 / 0")
    desk.write("kdray.toml", '[plugins]\nload = ["broken.py"]\n')
    assert "ZeroDivisionError" in desk("plugins").out
    assert desk("doctor", "--num-workers", 0).code == 3
