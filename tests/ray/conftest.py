import pytest

from kdray.launch.session import RaySession


@pytest.fixture(scope="module")
def ray_session():
    """One Ray for the runs of a module."""
    with RaySession("local") as session:
        yield session
