"""`engine.precision: auto` is decided before a run begins."""

import pytest
import torch
import yaml

from kdray.config.load import load_config
from kdray.launch import arithmetic
from kdray.launch.arithmetic import bf16_share, decided
from tests.conftest import Lab

# Pairs of the share that is measured and what follows.
SHARES = [(0.45, "bf16"), (0.95, "fp32"), (8.0, "fp32")]


def test_it_is_what_the_machine_is_faster_with(lab: Lab):
    """Measured here: whoever prefers the other is wrong by this machine's own clock."""
    told = []
    config = load_config(lab.config("auto", engine={"precision": "auto"}), [], registry=lab.registry).config
    found = decided(config, say=told.append)
    assert found.engine.precision == ("bf16" if bf16_share("cpu") < arithmetic.WORTH else "fp32")
    assert len(told) == 1 and told[0].startswith(f"engine.precision auto: {found.engine.precision}")
    assert found.model_copy(update={"engine": config.engine}) == config


@pytest.mark.parametrize("share, name", SHARES)
def test_by_the_share(lab: Lab, monkeypatch, share, name):
    monkeypatch.setattr(arithmetic, "bf16_share", lambda device: share)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    configs = {
        wanted: load_config(lab.config(wanted, engine={"precision": wanted}), [], registry=lab.registry).config
        for wanted in ("auto", "bf16", "fp32")
    }
    told = []
    assert decided(configs["auto"], say=told.append).engine.precision == name
    assert told.pop().startswith(f"engine.precision auto: {name}: a convolution in bf16 takes {share:g} of its time")
    assert decided(configs["bf16"], say=told.append).engine.precision == "bf16"
    assert [line.startswith("warning: engine.precision bf16 is slow here") for line in told] == [True] * (share == 8)
    assert decided(configs["fp32"], say=told.append) is configs["fp32"]


def test_a_run_keeps_to_it(desk, lab: Lab):
    lab.config("auto", engine={"precision": "auto"}, schedule={"epochs": 1})
    done = desk("train", "auto.yaml")
    assert done.code == 0, done.err
    written = yaml.safe_load((lab.path / "runs/auto/config.yaml").read_text())["engine"]["precision"]
    assert f"engine.precision auto: {written}" in done.out + done.err
