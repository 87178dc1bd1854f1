"""docs/hooks.md is the docstrings of kdray/hooks.py. `python tests/plugins_host/test_hook_docs.py` writes it anew."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from kdray import hooks
from kdray.cli.verbs import command
from kdray.data.build import pipeline
from kdray.errors import ConfigError, RunFailed
from kdray.loader import load_plugins
from kdray.registry import Registry

PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"
HOOKS = {name: spec for name, spec in vars(hooks).items() if name.startswith("kdray_")}


def section(name):
    return f"## {name}({', '.join(inspect.signature(HOOKS[name]).parameters)})\n\n{inspect.getdoc(HOOKS[name])}\n"


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name):
    assert section(name) in PAGE.read_text(), __doc__
    assert "Runs on" in section(name)


def test_no_other_hook_is_documented():
    assert re.findall(r"^## (kdray_\w+)", PAGE.read_text(), re.M) == list(HOOKS)


@pytest.fixture
def example(lab):
    """example(name): the plugin of that hook's example, loaded; what the lab runs from then on knows it."""

    def load(name):
        (text,) = re.findall(r"```python\n(.*?)```", section(name), re.S)
        (lab.path / "example.py").write_text(text)
        lab.registry = Registry(load_plugins(paths=[lab.path / "example.py"]))
        return lab.registry.host.plugins[-1]

    return load


@pytest.mark.parametrize("name", HOOKS)
def test_every_example_is_a_plugin(name, example):
    info = example(name)
    assert (info.status, info.error, info.hooks) == ("loaded", "", [name])


TEACHER = "teacher={model: convnet, widths: [4, 8], train: recipe.yaml}"
USES = {
    "kdray_distillers": ["losses.logit_mse={}", TEACHER],
    "kdray_models": ["student={model: tiny}", "student.widths=null"],
    "kdray_datasets": ["data.name=noise", "data.samples=50"],
    "kdray_augmentations": ["data.augment=[invert]", "data.views=all"],
    "kdray_optimizers": ["optimizer.name=rmsprop", "optimizer.weight_decay=null"],
    "kdray_trackers": ["trackers=[csv]"],
}
"""By hook, what a config uses of the example."""
TRACES = {
    "kdray_trackers": ["curve.csv", "curve.txt"],
    "kdray_run_started": ["started.txt"],
    "kdray_epoch_finished": ["mine.jsonl"],
    "kdray_checkpoint_saved": ["newest.safetensors"],
    "kdray_run_finished": ["mine.json"],
}
"""By hook, the files that the example leaves in the folder of a run."""
ELSEWHERE = {"kdray_commands", "kdray_configure", "kdray_run_failed"}


@pytest.mark.parametrize("name", [name for name in HOOKS if name not in ELSEWHERE])
def test_every_example_runs(name, example, lab, capfd):
    lab.config("recipe", schedule={"epochs": 1}, trackers=[])
    example(name)
    quick = {"schedule": {"epochs": 1}, "engine": {"log_every": 1}, "trackers": []}
    run = lab.run("used", *USES.get(name, []), **quick)
    assert "warning" not in capfd.readouterr().err  # a hook that fails does not stop the run
    assert all((run.path / file).exists() for file in TRACES.get(name, []))


def test_the_example_of_a_command_runs(example, lab):
    size = command(example("kdray_commands").specs["commands"]["size"])
    assert int(CliRunner().invoke(size, [str(lab.path)]).output) > 0


def test_the_example_of_a_refusal_refuses(example, lab):
    example("kdray_configure")
    with pytest.raises(ConfigError, match="this cluster is shared"):
        lab.registry.host.ask("kdray_configure", config={"schedule": {"epochs": 600}})


def test_the_example_of_a_failure_hears_of_it(example, lab):
    example("kdray_run_failed")
    with pytest.raises(RunFailed):
        lab.run("lost", optimizer={"lr": 1e38}, trackers=[])
    assert "RunFailed" in (lab.path / "runs" / "lost" / "failed.txt").read_text()


def test_the_example_of_an_augmentation_numbers_its_pictures(example, lab):
    example("kdray_augmentations")
    ((_, invert),) = pipeline(["invert"], lab.registry, seed=0).steps
    images, u = torch.randint(256, (20, 1, 4, 4), dtype=torch.uint8), torch.rand(20, 1)
    assert torch.equal(invert(images, u), invert(images, invert.numbers(invert.variant(u))))


if __name__ == "__main__":
    head = PAGE.read_text().split("\n## kdray_")[0]
    PAGE.write_text(head + "\n" + "\n".join(map(section, HOOKS)))
