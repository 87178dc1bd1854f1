"""Files of a run that are not what was written: messages, and no more is lost than the file."""

import json

import pytest

from kdray.run.folder import RunFolder

DAMAGE = {
    "cut": b'{"state": "fini',
    "list": b"[1, 2]",
    "binary": b"\xff\xfe\x00\x01",
    "empty": b"",
    "deep": b"[" * 100_000,
}


@pytest.fixture
def run(desk):
    return desk.trained(name="mine")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_tells_of_a_run(desk, run, damage):
    """status.json: the run goes on from its checkpoint. progress.json, environment.json: nobody needs them."""
    for file in ("status.json", "progress.json", "environment.json", "teachers.json"):
        (run / file).write_bytes(damage)
    (row,) = json.loads(desk("runs", "--json").out)
    assert row["state"] == "unknown" and "Traceback" not in desk("runs").err
    assert desk("resume", "mine").code == 0
    assert json.loads(desk("runs", "--json").out)[0]["state"] == "finished"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_needed_is_named(desk, run, damage):
    for file, state, code in (
        ("summary.json", "finished", 4),
        ("data.json", "failed", 4),
        ("config.yaml", "failed", 2),
    ):
        whole = (run / file).read_bytes()
        (run / file).write_bytes(damage)
        (run / "status.json").write_text(json.dumps({"state": state}))
        message = desk.refused("resume", "mine", code=code)
        assert file in message, message
        assert desk("runs").code == 0
        (run / file).write_bytes(whole)


def test_metrics_of_which_the_end_was_lost(desk):
    run = desk.trained("schedule.epochs=3", "engine.log_every=1", name="mine")
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + b'{"kind": "ste')
    (run / "status.json").write_text('{"state": "interrupted"}')
    assert desk("resume", "mine").code == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row for row in rows if row["kind"] != "resumed"] == [json.loads(line) for line in lines]


def test_metrics_of_which_a_line_in_the_middle_is_damaged(desk):
    """The others stay, and it is said once."""
    run = desk.trained("schedule.epochs=3", "engine.log_every=1", name="mine")
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], b"\x00" * 9 + lines[2][9:], *lines[3:]]))
    assert RunFolder(run).rows() == [json.loads(line) for line in (*lines[:2], *lines[3:])]
    for told in (1, 0):
        (run / "status.json").write_text('{"state": "interrupted"}')
        resumed = desk("resume", "mine")
        assert resumed.code == 0 and resumed.err.count("metrics.jsonl: line 3 cannot be read, and is left out") == told
    kept = [row for row in RunFolder(run).rows() if row["kind"] not in ("resumed", "damaged")]
    assert kept == [json.loads(line) for line in (*lines[:2], *lines[3:])]


def test_what_a_killed_process_was_writing(desk):
    run = desk.trained("schedule.epochs=2", name="mine")
    (run / "checkpoints" / ".writing-step-000000001").mkdir()
    (run / "checkpoints" / ".writing-step-000000001" / "optimizer.pt").write_bytes(b"half")
    (run / ".writing-best.safetensors").write_bytes(b"half")
    (run / "status.json").write_text('{"state": "interrupted"}')
    assert desk("resume", "mine").code == 0
    assert not list(run.rglob(".writing-*"))
