"""`kdray compare` as it is typed."""

import json

import pytest


@pytest.mark.thorough
def test_two_recipes_over_seeds(desk):
    config = desk.config()
    assert desk("train", config, "--seeds", "0,1", "--name", "slow").code == 0
    assert desk("train", config, "--seeds", "0,1", "--name", "fast", "optimizer.lr=0.5").code == 0
    shown = desk("compare", "slow", "fast")
    assert shown.code == 0 and not shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["optimizer.lr", "0.05", "0.5"] in lines and ["seeds", "0,", "1", "0,", "1"] in lines
    found = json.loads(desk("compare", "slow", "fast", "--json").out)
    difference = found["tests"]["last"]["difference"]["mean"]
    assert f"last epoch: fast less slow: {100 * difference:+.2f} points (seeds 0, 1)" in shown.out
    single = desk("compare", "slow-seed0", "fast-seed0").out
    assert single.count("no paired t-test: it needs two seeds at least") == 1
    assert "the configs are the same" not in single
    report = desk("report", "slow", "fast")  # which takes the same names
    assert report.code == 0 and report.out.endswith("slow-seed0/report/report.html\n")


def test_it_refuses(desk):
    run = desk.trained(name="mine")
    assert "Did you mean 'mine'?" in desk.refused("compare", "mini", "mine")
    assert "the run mine is named twice" in desk.refused("compare", "mine", "runs/mine")
    desk.trained(name="other")
    (run / "status.json").write_text('{"state": "failed"}')
    assert "mine is not finished (its state: failed)" in desk.refused("compare", "mine", "other")
