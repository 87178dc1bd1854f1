import pytest

from kdray.models.builtin import kdray_models


class Models:
    """The networks that come with kdray, without the plugin host."""

    def __init__(self):
        self.models = {spec.name: spec for spec in kdray_models()}

    def get(self, kind, name):
        return getattr(self, kind)[name]


@pytest.fixture(scope="session")
def registry():
    return Models()
