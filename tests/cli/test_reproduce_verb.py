"""`kdray reproduce` on the command line: how much work it is, and what it refuses."""

import json

TABLE = """
title: ours
source: nobody
epoch: last
seeds: [0, 1]
pairs:
  a-b: {teacher: convnet, student: convnet}
teacher: tutor.yaml
methods:
  kd: {config: kd.yaml, published: [60.0]}
  hint: {config: hint.yaml, published: [60.0]}
"""


def test_how_much_work_it_is(desk):
    teacher = {"model": "convnet", "widths": [4], "train": "tutor.yaml"}
    desk.config("tutor.yaml", name="tutor", schedule={"epochs": 3})
    desk.config("kd.yaml", teacher=teacher, losses={"kd": {}})
    desk.config("hint.yaml", teacher=teacher, losses={"ce": {}, "hint": {"layer": 99}})
    part = ("reproduce", desk.write("own.yaml", TABLE), "--configs", ".", "--dry-run")
    plan = json.loads(desk(*part, "--json").out)
    assert (plan["runs"], plan["left"], plan["teachers"], plan["epochs"]) == (4, 2, 1, 2 * 1 + 3)
    # A 3×3 convolution of 64 pixels to 4 channels, and a layer of 4 × 10; forward once, backward twice that.
    forward = 64 * 9 * 4 + 4 * 10
    assert plan["pictures"] == 5 * 100 and plan["macs"] == (2 * (3 + 1) + 3 * 3) * 100 * forward
    assert list(plan["failed"]) == ["own/a-b/hint-seed0", "own/a-b/hint-seed1"]
    told = desk(*part, "schedule.epochs=5").out
    assert "1 pair × 2 methods × 2 seeds: 4 runs, 0 of them finished, 2 to do; 1 teacher to train first" in told
    assert "left: 15 epochs, 1,500 pictures" in told and "cannot be built: own/a-b/hint-seed0: hint" in told
    assert desk.runs() == []


def test_what_there_is_none_of(desk):
    assert "Did you mean 'crd" in desk.refused("reproduce", "crd9")
    assert "--pairs: the table has no 'a-b'" in desk.refused("reproduce", "crd1", "--pairs", "a-b")
    assert "configs/teachers/wrn_16_2.yaml" in desk.refused("reproduce", "crd1")
