"""A number of workers, or a range that the cluster decides in."""

import pytest

from kdray.config.load import load_config
from kdray.config.schema import ScaleConfig
from kdray.errors import ConfigError
from kdray.launch.experiment import check_batch
from kdray.launch.session import fixed, share_out


def loaded(lab, workers, batch=32):
    overrides = [f"scale.num_workers={workers}", f"data.batch_size={batch}"]
    return load_config(lab.config("a"), overrides, registry=lab.registry).config


@pytest.mark.parametrize(
    "text, fewest, most, elastic", [("0", 0, 0, False), ("4", 4, 4, False), ("2..8", 2, 8, True), ("3..3", 3, 3, True)]
)
def test_what_may_be_written(lab, text, fewest, most, elastic):
    scale = loaded(lab, text).scale
    assert (scale.fewest, scale.most, scale.elastic) == (fewest, most, elastic)


@pytest.mark.parametrize("text", ["8..2", "0..4", "2-8", "two", "2..", "2..8.."])
def test_what_may_not(lab, text):
    with pytest.raises(ConfigError, match=r"scale.num_workers: must be a whole number, or two .* as in 2\.\.8"):
        loaded(lab, text)
    with pytest.raises(ConfigError, match="must be at least 0"):
        loaded(lab, -1)


def test_each_worker_of_the_most_needs_a_picture_of_a_batch(lab):
    check_batch(loaded(lab, "2..8", batch=9))  # uneven parts are slower, not wrong
    with pytest.raises(ConfigError, match=r"7 pictures are not enough for 8 workers\. Take --num-workers 2\.\.7"):
        check_batch(loaded(lab, "2..8", batch=7))


@pytest.mark.parametrize(
    "nodes, workers, share",
    [
        ([{"CPU": 4.0}], 4, (1, False)),
        ([{"CPU": 8.0}] * 4, 8, (4, False)),
        ([{"CPU": 8.0, "GPU": 1.0}] * 3, 3, (8, True)),  # as many as there are GPUs
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], 8, (2, False)),  # too few GPUs for the fewest workers
    ],
)
def test_as_many_as_fit(nodes, workers, share):
    scale = ScaleConfig(num_workers="2..8")
    assert fixed(scale, nodes).num_workers == workers
    assert share_out(scale, nodes) == share


def test_fewer_than_the_fewest_do_not_fit():
    with pytest.raises(ConfigError, match="asked for 2 workers"):
        share_out(ScaleConfig(num_workers="2..8"), [{"CPU": 1.0}])
