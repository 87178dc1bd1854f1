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


def test_rows_of_storage_that_was_away_are_told_later(tmp_path):
    folder, told = tmp_path / "run", []
    folder.mkdir()
    file = folder / "metrics.jsonl"
    file.write_text('{"kind": "step", "step": 1}\n')
    watch = Watch(folder, told.append, lambda now: None)
    with open(file, "a") as handle:
        handle.write('{"kind": "step", "step": 2}\n')
    folder.rename(tmp_path / "away")
    watch._look()
    assert told == []
    (tmp_path / "away").rename(folder)
    watch._look()
    assert [row["step"] for row in told] == [2]


def test_a_checkpoint_whose_row_was_not_written_has_one_after_the_restart(tmp_path):
    """Killed between the two."""
    (tmp_path / ".token").write_text("x")
    log = FileLog(tmp_path, "x")
    for step in (3, 4, 5):
        log.row({"kind": "step", "step": step})
    (tmp_path / "checkpoints" / "step-000000004").mkdir(parents=True)
    for _ in range(2):
        log.rewind(4)
        rows = [(row["kind"], row["step"]) for row in read_rows(tmp_path / "metrics.jsonl")]
        assert rows.count(("checkpoint", 4)) == 1 and ("step", 5) not in rows
