"""Every block of docs/losses.md is a config that kdray takes."""

import re

import pytest
import yaml

from kdray.config.load import load_config
from kdray.registry import Registry
from tests.conftest import ROOT

BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "losses.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[-2])
def test_block(block, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    file = tmp_path / "config.yaml"
    file.write_text(f"extends: configs/base.yaml\n{block}")
    config = load_config(file, registry=Registry.default()).config
    asked = yaml.safe_load(block)["losses"]
    assert set(asked) <= set(config.losses)
    classes = [Registry.default().get("distillers", loss.use or label).cls for label, loss in config.losses.items()]
    assert {name for cls in classes for name in cls.requires.views} == set(config.data.extra_views)
    assert any(cls.requires.teacher for cls in classes) == bool(config.all_teachers)
