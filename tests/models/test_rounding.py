"""A network that rounds as int8 will: to which numbers, with which gradient, and within which ranges."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kdray.engine.context import Context
from kdray.errors import ConfigError
from kdray.models.checkpoint import load_weights
from kdray.models.convnet import ConvNet
from kdray.models.rounding import (
    MOMENTUM,
    InputRanges,
    _grid,
    _round,
    begin_rounding,
    rounded_layers,
    set_rounding,
    without_rounding,
)


def by_hand(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Eq. 1 and 12 of Jacob et al., number by number."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    return torch.tensor([scale * (min(255, max(0, round(v / scale) + zero)) - zero) for v in x.flatten().tolist()])


def layer(low: float, high: float) -> nn.Linear:
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(5, 3))
    set_rounding(found)
    found[0].input_range.copy_(torch.tensor([low, high]))
    return found[0]


@pytest.mark.parametrize("training", [True, False])
def test_inputs_and_weights_are_on_their_grids(training):
    one = layer(-0.7, 1.9).train(training)
    x = torch.randn(4, 5)
    rows = one.weight.detach().double()
    weight = torch.stack([by_hand(row, min(0.0, float(row.min())), max(0.0, float(row.max()))) for row in rows])
    assert len(weight[0].unique()) > 1 and (weight - one.weight).abs().max() < 0.5 * one.weight.abs().max() / 127
    seen = by_hand(x, -0.7, 1.9).view(4, 5)
    assert_close(one(x), seen @ weight.T + one.bias, atol=1e-5, rtol=1e-5)


def test_the_gradient_passes_and_stops_where_a_number_was_cut_off():
    one = layer(-1.0, 1.1).train()
    x = torch.tensor([[-3.0, -0.5, 0.0, 0.5, 3.0]], requires_grad=True)
    one(x).sum().backward()
    through = one.weight.detach().sum(0)
    assert_close(x.grad[0, 1:4], through[1:4], atol=0.02, rtol=0)
    assert x.grad[0, [0, 4]].abs().max() == 0
    assert_close(one.weight.grad, by_hand(x.detach(), -1.0, 1.1).expand(3, 5), atol=1e-5, rtol=1e-5)


def test_ranges_follow_the_batches_of_training_alone():
    one = layer(-1.0, 1.0)
    ranges = InputRanges(one)
    one.train()
    one(torch.tensor([[-3.0, 0, 0, 0, 2.0]]))
    one(torch.tensor([[0.0, 0, 0, 0, 5.0]]))  # of the same step
    ranges.follow(Context())
    expected = torch.tensor([-1 + MOMENTUM * (-3 + 1), 1 + MOMENTUM * (5 - 1)])
    assert_close(one.input_range, expected)
    ranges.follow(Context())  # of a step that it had no part in
    one.eval()
    one(torch.full((1, 5), 99.0))
    ranges.follow(Context())
    assert_close(one.input_range, expected)


def test_a_network_begins_with_what_pictures_reach():
    torch.manual_seed(0)
    network, pictures = ConvNet(num_classes=4, in_channels=1, widths=(4, 8)), torch.randn(2, 1, 8, 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    begin_rounding(network, pictures, "student convnet")
    layers = rounded_layers(network)
    assert list(layers) == ["stages.0.conv", "stages.1.conv", "fc"]
    assert_close(layers["stages.0.conv"].input_range, torch.stack([pictures.min(), pictures.max()]))
    assert all(layer.input_range[1] > 0 for layer in layers.values())
    after = network.state_dict()
    assert after.keys() - before.keys() == {f"{path}.input_range" for path in layers}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_copy_without_rounding_is_the_network_as_it_was(tmp_path):
    torch.manual_seed(0)
    network, pictures = ConvNet(num_classes=4, in_channels=1, widths=(4, 8)).eval(), torch.randn(2, 1, 8, 8)
    exact = network(pictures)
    begin_rounding(network, pictures, "student convnet")
    network.eval()
    assert 0 < (network(pictures) - exact).abs().max() < 0.05
    copy, ranges = without_rounding(network)
    assert torch.equal(copy(pictures), exact) and not rounded_layers(copy)
    assert ranges["fc"] == tuple(network.fc.input_range.tolist()) and len(rounded_layers(network)) == 3
    torch.save(network.state_dict(), tmp_path / "rounds.pt")
    plain = ConvNet(num_classes=4, in_channels=1, widths=(4, 8)).eval()
    load_weights(plain, tmp_path / "rounds.pt")
    assert torch.equal(plain(pictures), exact)


def test_layers_of_an_arithmetic_of_their_own_stay():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ConfigError, match=r"student.int8: student scaled has no nn.Conv2d or nn.Linear"):
        begin_rounding(nn.Sequential(nn.Flatten(), Scaled(4, 2)), torch.randn(2, 1, 2, 2), "student scaled")


def test_numbers_that_are_all_zero_stay_zero():
    one = layer(0.0, 0.0).train()
    with torch.no_grad():
        one.weight.zero_()
    x = torch.zeros(2, 5, requires_grad=True)
    y = one(x)
    y.sum().backward()
    assert_close(y, one.bias.expand(2, 3))
    assert x.grad.isfinite().all() and one.weight.grad.isfinite().all()


def test_what_is_no_number_stays_none():
    one = layer(-1.0, 1.0).train()
    x = torch.tensor([[0.1, float("inf"), 0.0, 0.0, 0.0]])
    assert not one(x).isfinite().any()
    with torch.no_grad():
        one.weight[1, 2] = float("nan")
    assert one(torch.zeros(1, 5)).isfinite().tolist() == [[False, False, False]]  # the range is lost too


def test_a_trunk_in_evaluation_mode_passes_the_gradient():
    one = layer(-1.0, 1.0).eval()
    x = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]], requires_grad=True)
    one(x).sum().backward()
    assert_close(x.grad[0], one.weight.detach().sum(0), atol=0.02, rtol=0)


def test_in_bf16_both_ways_round_to_the_same_levels():
    one = layer(-1.1, 2.3)
    x = torch.randn(500, 5).bfloat16()
    scale, zero = _grid(*one.input_range)
    fused = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
    assert torch.equal(_round(x, scale, zero), fused)
