from pathlib import Path

import pytest

from kdray.registry import Registry

PLUGIN = Path(__file__).parent / "plugin_with_stages.py"


@pytest.fixture
def with_stages(lab):
    """The lab knows the plugin of this folder."""
    lab.registry = Registry.load(paths=[PLUGIN])


@pytest.fixture
def teacher(teacher_weights) -> dict:
    return {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
