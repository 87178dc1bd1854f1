"""What a run shows."""

from types import SimpleNamespace

import pytest

from kdray.run.console import Console, Screen, epoch_line

TERMS = {"ce": 0.5123, "kd": 9.5031, "crd": 12.0049}


def row(epoch: int, **more) -> dict:
    best = {"top1": 0.88, "epoch": 9}
    scores = {"terms": TERMS, "loss": 14.0624, "test": {"top1": 0.8712}, "best": best, "pictures_per_second": 12345.6}
    return {"kind": "epoch", "step": epoch, "epoch": epoch, **scores, **more}


def test_the_line_of_an_epoch():
    assert epoch_line(row(12), 240) == (
        "   12/240  loss 14.062 (ce 0.512, kd 9.503, crd 12.005)  test 87.12%  best 88.00% at 9  12,346/s"
    )
    assert "val 90.00%  test 87.12%" in epoch_line(row(12, validation={"top1": 0.9}), 240)
    assert "loss 2.30e+29" in epoch_line(row(12, loss=2.297e29), 240)


@pytest.mark.parametrize(("epochs", "lines"), [(1, 1), (30, 30), (31, 17), (60, 31), (240, 31)])
def test_long_runs_have_fewer_lines(capfd, epochs, lines):
    config = SimpleNamespace(schedule=SimpleNamespace(epochs=epochs))
    screen = Screen(Console(), config)
    for epoch in range(1, epochs + 1):
        screen.row(row(epoch))
    shown = capfd.readouterr().err.splitlines()
    assert len(shown) == lines
    assert shown[0].startswith(f"  {1:>{len(str(epochs))}}/{epochs} ") and shown[-1].startswith(f"  {epochs}/{epochs} ")
