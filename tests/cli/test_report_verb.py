"""`kdray report` as it is typed."""

from pathlib import Path

import pytest


@pytest.mark.thorough
def test_it_prints_the_page(desk):
    run = desk.trained(name="mine")
    result = desk("report", "mine")
    assert result.code == 0 and result.out == f"{run}/report/report.html\n" and Path(result.out.strip()).exists()
    without = "agreement, correlation, similarity of stages, softened outputs"
    assert result.err == f"left out: mine: {without}: it has no teacher\n"
    result = desk("report", "runs/mine", "--output", "elsewhere")
    assert result.code == 0 and result.out == "elsewhere/report.html\n"
    assert sorted(path.name for path in (desk.path / "elsewhere").glob("report.*")) == ["report.html", "report.json"]


def test_it_refuses(desk):
    run = desk.trained(name="mine")
    assert "Did you mean 'mine'?" in desk.refused("report", "mini")
    assert "the run mine is named twice" in desk.refused("report", "mine", "runs/mine")
    (run / "status.json").write_text('{"state": "failed"}')
    assert "mine is not finished (its state: failed)" in desk.refused("report", "mine")
    assert not (run / "report").exists()
