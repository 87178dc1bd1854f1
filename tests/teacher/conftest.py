"""A lab whose teacher is worth a cache."""

import pytest

from kdray.teacher.live import LiveTeacher
from tests.teacher.cache_lab import CacheLab


@pytest.fixture
def lab(tmp_path, monkeypatch) -> CacheLab:
    monkeypatch.chdir(tmp_path)
    return CacheLab(tmp_path)


@pytest.fixture
def teacher(teacher_weights) -> dict:
    return {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many pictures a teacher looked at, a number a forward pass."""
    found, forward = [], LiveTeacher.forward

    def counted(self, pictures):
        found.append(len(pictures))
        return forward(self, pictures)

    monkeypatch.setattr(LiveTeacher, "forward", counted)
    return found
