import pytest

from kdray.config.schema import ScheduleConfig, WeightSchedule
from kdray.engine.schedule import loss_weight, lr_factor


def test_multistep_falls_after_the_milestone_is_done():
    schedule = ScheduleConfig(epochs=240, name="multistep", milestones=[150, 180, 210], gamma=0.1)
    factors = {epoch: lr_factor(schedule, epoch) for epoch in (0, 149.99, 150, 179.99, 180, 210, 239.9)}
    assert list(factors.values()) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001, 0.001])


def test_cosine_with_warm_up():
    schedule = ScheduleConfig(epochs=10, name="cosine", warmup=2.0, end=0.1)
    assert [lr_factor(schedule, e) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_step():
    schedule = ScheduleConfig(epochs=10, name="step", step=3, gamma=0.5)
    assert [lr_factor(schedule, e) for e in (0, 2.9, 3, 6.5, 9)] == pytest.approx([1, 1, 0.5, 0.25, 0.125])


def test_weights_rise_and_fall():
    weight = WeightSchedule(value=2.0, start=0.5, warmup=4, end=1.0, decay=2)
    assert [loss_weight(weight, e, 10) for e in (0, 2, 4, 7, 9, 10)] == pytest.approx([0.5, 1.25, 2, 2, 1.5, 1])
    assert loss_weight(0.3, 5, 10) == 0.3
