"""A few injected faults: `python chaos/run.py` does many."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.kinds import Skipped
from chaos.lab import Lab
from chaos.run import KINDS, one, plan

RUN = Path(__file__).parents[2] / "chaos" / "run.py"
KINDS_OF_CI = "at a file operation,checkpoint damaged,run, injected,kill -9 of precompute"


@pytest.mark.thorough
def test_faults_end_as_they_must(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, RUN, "--no-ray", "--faults", "4", "--jobs", "1", "--kinds", KINDS_OF_CI, "--out", out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["faults"]
    assert len(rows) == 4 and all(row["ok"] for row in rows)


def test_a_plan_has_every_kind_and_is_the_same_again():
    faults = plan(200, [""], KINDS)
    assert {name for name, _ in faults} == set(KINDS) and len(set(faults)) == 200
    assert faults[:50] == plan(50, [""], KINDS)


def breaks_its_word(lab, chance):
    assert chance.random() > 1, "the weights differ"


def leaves_a_file(lab, chance):
    (lab.path / "runs").mkdir()
    (lab.path / "runs" / ".writing-x").touch()


def is_not_allowed(lab, chance):
    raise Skipped("no")


@pytest.mark.parametrize(
    "kind, ok, what",
    [
        (breaks_its_word, False, "the weights differ"),
        (leaves_a_file, False, ".writing-x"),
        (is_not_allowed, None, "no"),
    ],
)
def test_what_goes_wrong_is_told(tmp_path, monkeypatch, kind, ok, what):
    monkeypatch.setitem(KINDS, "kind", (kind, 1))
    row = one("kind", 0, 0, tmp_path / "lab", Lab(tmp_path / "truth"))
    assert row["ok"] is ok and what in row["what"]
