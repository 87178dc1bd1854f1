"""What losses on feature maps share: pairs of maps, sizes, connectors, and the errors of networks that do not fit."""

import pytest
import torch
from pydantic import ValidationError

from kdray import ConfigError, MapChoice, Options, Setup, Shapes, last_maps, map_connector, paired_maps, same_size


class Chosen(Options):
    maps: MapChoice = None


def setup(maps_s, maps_t):
    student, teacher = (Shapes(features=tuple(maps), preactivations=tuple(maps[1:])) for maps in (maps_s, maps_t))
    return Setup(student, teacher, 3, 9, torch.arange(9) % 3, torch.Generator())


MAP, ROW = (4, 8, 8), (5, 6)
DEEP = setup([MAP] * 3, [MAP] * 5)


def test_no_choice_leaves_the_stem_out_and_counts_from_the_deep_end():
    assert paired_maps("m", DEEP, "features", Chosen().maps) == (-2, -1)
    assert paired_maps("m", DEEP, "features", first=0, least=3) == (-3, -2, -1)
    assert paired_maps("m", DEEP, "features", kind_t="preactivations") == (-2, -1)
    assert paired_maps("m", DEEP, "preactivations") == (-1,)


def test_a_choice_is_kept_as_it_is():
    assert paired_maps("m", DEEP, "features", Chosen(maps=(2, 0, -3)).maps) == (2, 0, -3)
    with pytest.raises(ValidationError):
        Chosen(maps=())


@pytest.mark.parametrize("place", [3, 4, -4])
def test_both_networks_must_have_the_map(place):
    with pytest.raises(ConfigError, match=f"m: there is no map {place} in both .* share 3; .* −3 to 2"):
        paired_maps("m", DEEP, "features", [0, place])


@pytest.mark.parametrize(
    "number, arguments",
    [
        (0, {}),
        (0, {"chosen": [0]}),
        (0, {"first": 0}),
        (1, {}),
        (1, {"first": 0, "least": 2}),
        (2, {"least": 2}),
        (2, {"least": 2, "chosen": [1]}),
        (2, {"spatial": False, "chosen": []}),
    ],
)
def test_too_few_maps(number, arguments):
    for fewer in (setup([MAP] * number, [MAP] * 4), setup([MAP] * 4, [MAP] * number)):
        with pytest.raises(
            ConfigError, match=r"m compares the maps .*[12] or more stages.*`layers: \{features: \[...\]\}`"
        ):
            paired_maps("m", fewer, "features", **arguments)


def test_the_error_names_the_outputs_of_each_network():
    with pytest.raises(ConfigError, match=r"student's `layers: \{features: .* teacher's `layers: \{preactivations: "):
        paired_maps("m", setup([MAP], [MAP]), "features", kind_t="preactivations")


def test_only_what_is_compared_must_be_a_map():
    for mixed in (setup([ROW, MAP, ROW], [MAP] * 3), setup([MAP] * 3, [ROW, MAP, ROW])):
        assert paired_maps("m", mixed, "features", [1]) == (1,)
        assert paired_maps("m", mixed, "features", spatial=False) == (-2, -1)
        with pytest.raises(ConfigError, match=r"m compares the maps \(C, H, W\) .*\(5, 6\)"):
            paired_maps("m", mixed, "features")


def test_last_maps():
    with_map, without = Shapes(last_map=MAP), Shapes(last_map=(6,))
    assert last_maps("m", student=with_map, teacher=Shapes(last_map=(2, 4, 4))) == (MAP, (2, 4, 4))
    assert last_maps("m", student=with_map) == (MAP,)
    for sides, side in (
        ((with_map, without), "teacher"),
        ((without, with_map), "student"),
        ((Shapes(), with_map), "student"),
    ):
        with pytest.raises(ConfigError, match=rf"m needs a last map .* of the {side}.* {side}'s `layers: {{last_map: "):
            last_maps("m", student=sides[0], teacher=sides[1])


def test_the_larger_side_is_pooled():
    f, g = torch.arange(32.0).view(1, 2, 4, 4), torch.ones(1, 3, 2, 8)
    small_f, small_g = same_size(f, g)
    assert small_f.shape == (1, 2, 2, 4) and small_g.shape == (1, 3, 2, 4)
    torch.testing.assert_close(small_f, (f[:, :, ::2] + f[:, :, 1::2]) / 2)
    unchanged = same_size(f, f + 1)
    assert unchanged[0] is f


@pytest.mark.parametrize("sizes_s", [(8, 8), (4, 4), (2, 2), (5, 4), (7, 9), (8, 4)])
def test_a_connector_gives_the_teachers_shape(sizes_s):
    connect = map_connector("m", (2, *sizes_s), (3, 4, 4))
    assert connect(torch.zeros(5, 2, *sizes_s)).shape == (5, 3, 4, 4)


@pytest.mark.parametrize("sizes_s", [(3, 3), (1, 1), (2, 4), (8, 2)])
def test_a_map_too_small_for_a_connector(sizes_s):
    with pytest.raises(ConfigError, match=r"m: the student's map is .* half as large"):
        map_connector("m", (2, *sizes_s), (3, 4, 4))
