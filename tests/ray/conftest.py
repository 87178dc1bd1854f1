import pytest

from kdray.launch.session import RaySession
from tests.conftest import Lab


@pytest.fixture(scope="module")
def ray_session():
    """One Ray for the runs of a module."""
    with RaySession("local") as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of all tests of a module."""
    return tmp_path_factory.mktemp("module")


@pytest.fixture
def here(folder, monkeypatch):
    """A lab there."""
    monkeypatch.chdir(folder)
    return Lab(folder)
