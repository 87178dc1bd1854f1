"""The driver's eye on metrics.jsonl, also when a restarted group rewinds it."""

from kdray.run.metrics import FileLog, read_rows
from kdray.run.watch import Watch


def test_rows_are_told_once_and_what_is_done_again_is_told_again(tmp_path):
    (tmp_path / ".token").write_text("x")
    log, told = FileLog(tmp_path, "x"), []
    watch = Watch(tmp_path, lambda row: told.append((row["kind"], row["step"])), lambda now: None)
    for step in (1, 2, 3):
        log.row({"kind": "step", "step": step, "padding": "." * step})
    watch._look()
    watch._look()
    assert told == [("step", 1), ("step", 2), ("step", 3)]
    # The group restarts from a checkpoint at step 1, and new rows are there before anyone looks again.
    log.rewind(1)
    for step in (2, 3, 4):
        log.row({"kind": "step", "step": step, "padding": "." * 9})
    watch._look()
    assert told[3:] == [("step", 2), ("step", 3), ("step", 4)]
    assert [row["kind"] for row in read_rows(tmp_path / "metrics.jsonl")] == ["step", "resumed", "step", "step", "step"]


def test_a_line_that_is_still_being_written_waits(tmp_path):
    told = []
    watch = Watch(tmp_path, told.append, lambda now: None)
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "step", "step": 1}\n{"kind": "st')
    watch._look()
    assert [row["step"] for row in told] == [1]
    with open(file, "a") as handle:
        handle.write('ep", "step": 2}\n')
    watch._look()
    assert [row["step"] for row in told] == [1, 2]
