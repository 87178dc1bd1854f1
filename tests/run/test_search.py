"""What is told of a search: lines, table, results.parquet and pictures, of trials that are made up."""

import random
from io import StringIO
from math import log

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from kdray.config.tune import Dimension
from kdray.run.search import Trial, ranked, table, trial_line, write_results
from kdray.run.search_plots import LEAST, Axis, draw, importances

TOP1 = "validation/top1"
SPACE = {
    "optimizer.lr": Dimension(loguniform=[0.01, 1.0]),
    "losses.kd.weight": Dimension(uniform=[0.1, 2.0]),
    "student.widths": Dimension(choice=[[8, 16], [16, 32]]),
    "data.batch_size": Dimension(int=[16, 16 + 1]),
}


@pytest.fixture
def trials():
    """Of which the learning rate alone matters; 0.1 is best. The last one has failed."""
    draw, found = random.Random(0), []
    for number in range(20):
        values = {
            "optimizer.lr": 10 ** draw.uniform(-2, 0),
            "losses.kd.weight": draw.uniform(0.1, 2.0),
            "student.widths": draw.choice([[8, 16], [16, 32]]),
            "data.batch_size": 16,
        }
        metrics = {TOP1: 0.9 - 0.1 * abs(log(values["optimizer.lr"] / 0.1)), "parameters": 1234.0}
        state = "finished" if number % 3 == 0 else "stopped"
        epochs = 9 if state == "finished" else 3
        history = [{"epoch": epoch, **metrics} for epoch in range(1, epochs + 1)]
        found.append(Trial(number, state, epochs, values, metrics, 1.5, history=history))
    return [*found, Trial(20, "failed", 0, {"optimizer.lr": 0.5}, error="no numbers any more\nat step 3")]


def test_the_best_come_first_and_the_failed_last(trials):
    order = ranked(trials, TOP1)
    assert order[0].metrics[TOP1] == max(t.metrics.get(TOP1, 0) for t in trials) and order[-1].state == "failed"
    assert ranked(trials[:3], "loss") == trials[:3]
    losses = [Trial(1, "finished", 1, {}, {"loss": 2.0}), Trial(2, "finished", 1, {}, {"loss": 1.0})]
    assert [t.number for t in ranked(losses, "loss")] == [2, 1]


def test_a_line_a_trial_and_a_table_of_all(trials):
    first = Trial(7, "stopped", 3, {"losses.crd.temperature": 0.0712345, "student.widths": [8, 16]}, {TOP1: 0.912})
    assert trial_line(first, 2, 16, [TOP1]) == (
        "   2/16  trial 7: 91.20% after 3 epochs (stopped early)  crd.temperature 0.07123, student.widths [8, 16]"
    )
    assert trial_line(trials[-1], 16, 16, [TOP1]).splitlines()[1].strip() == "no numbers any more"
    out = Console(file=StringIO(), width=160)
    out.print(table(trials, [TOP1, "parameters"]))
    lines = out.file.getvalue().splitlines()
    assert len([line for line in lines if "1,234" in line]) == 20
    assert any("trial 20" in line and "no numbers any more" in line for line in lines)


def test_results_keep_every_value(trials, tmp_path):
    write_results(trials, tmp_path / "results.parquet")
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["trial"] for row in rows] == list(range(21))
    assert [row["optimizer.lr"] for row in rows] == [t.values["optimizer.lr"] for t in trials]
    assert rows[0]["student.widths"] in ("[8, 16]", "[16, 32]") and rows[-1]["student.widths"] is None
    assert rows[-1]["error"].startswith("no numbers") and rows[-1][TOP1] is None
    assert [file.name for file in tmp_path.iterdir()] == ["results.parquet"]


def test_importance_finds_what_matters(trials):
    measured = trials[:-1]
    axes = [axis for axis in (Axis(path, d, measured) for path, d in SPACE.items()) if axis.varies]
    found = importances(measured, axes, TOP1)
    assert list(found) == ["optimizer.lr", "losses.kd.weight", "student.widths"]  # what does not vary is left out
    assert sum(found.values()) == pytest.approx(1) and found["optimizer.lr"] > 0.7


def test_pictures(trials, tmp_path):
    files = draw(trials, SPACE, TOP1, tmp_path)
    assert [file.name for file in files] == ["history.png", "importance.png", "parallel.png"]
    for file in files:
        with Image.open(file) as image:
            assert len(image.convert("RGB").getcolors(100_000)) > 20  # something is drawn
    few = tmp_path / "few"
    few.mkdir()
    assert "importance.png" not in {file.name for file in draw(trials[: LEAST - 1], SPACE, TOP1, few)}
    assert draw(trials[-1:], SPACE, TOP1, few) == []
