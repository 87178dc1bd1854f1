"""`kdray probe` on the command line."""

import json


def test_probe(desk):
    desk.trained()
    found = json.loads(desk("probe", "base", "--data", "digits", "samples=100", "--json").out)
    assert found["run"] == "base" and found["train"] == 100 and 0 < found["networks"]["student"]["test"] <= 1
    told = desk("probe", "base", "--data", "digits", "samples=100").out
    assert f"student: {found['networks']['student']['test']:.2%} test" in told and "brought to 8×8; lbfgs" in told
    assert "learned from no teacher" in desk.refused("probe", "base", "--data", "digits", "--teacher")
    assert "--data" in desk.refused("probe", "base")
