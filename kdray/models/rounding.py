"""A network that trains for 8 bits: what each layer reads, and the layer's weights, are rounded to 256 levels as they
will be in int8, and it learns to live with that (Jacob et al., CVPR 2018). The gradient passes the rounding as if it
were not there, and stops where a number was cut off at the end of its range.

A layer stays what it is, with its weights in full precision under their names; its class is another one, and a buffer
`input_range` says what it has read lately.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

LEVELS = 256
RANGE = "input_range"
MOMENTUM = 0.1
"""Of the ranges, which follow the batches as a batch norm's statistics do (Jacob et al., section 3.1)."""


class RoundedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(_input(self, x), _weights(self), self.bias)


class RoundedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_input(self, x), _weights(self), self.bias)


ROUNDED = {nn.Conv2d: RoundedConv2d, nn.Linear: RoundedLinear}


def _input(layer: nn.Module, x: Tensor) -> Tensor:
    """x, rounded within the range that is known before this batch. What this one reaches is noted for `InputRanges`."""
    if layer.training:
        low, high = x.detach().aminmax()
        torch.maximum(layer.reached, torch.stack([-low, high]).to(layer.reached.dtype), out=layer.reached)
        # What is no finite number would be rounded to one: so it is told at this step, by what it makes of the range.
        scale, zero = _grid(*(layer.input_range + 0 * layer.reached))
    else:
        scale, zero = _grid(*layer.input_range)
    if torch.is_grad_enabled():
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS - 1)
    return _round(x, scale, zero)


def _weights(layer: nn.Module) -> Tensor:
    """Rounded, each output channel (dimension 0) within its own range."""
    weight = layer.weight
    rows = weight.detach().flatten(1)
    scale, zero = _grid(rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0))
    if torch.is_grad_enabled():
        # Whole numbers as fp32: others are looked at by the host, which a recorded step cannot wait for.
        return torch.fake_quantize_per_channel_affine(weight, scale, zero.float(), 0, 0, LEVELS - 1)
    of_rows = (-1, *(1,) * (weight.dim() - 1))
    return _round(weight, scale.view(of_rows), zero.view(of_rows))


def _round(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What torch's fused kernels compute, without a gradient, in operators that torch.export knows for batches of any
    size."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (scale * ((wide / scale).round().add(zero).clamp(0, LEVELS - 1) - zero)).to(x.dtype)


def _grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """S and Z of eq. 1, r = S (q − Z), with q from 0 to 255; 0 is on the grid, since low ≤ 0 ≤ high."""
    scale = ((high - low).float() / (LEVELS - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, (-low.float() / scale).round().to(torch.int32)


def rounded_layers(model: nn.Module) -> dict[str, nn.Module]:
    """By path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, tuple(ROUNDED.values()))}


def set_rounding(model: nn.Module) -> None:
    """Make all convolutions and linear layers of `model` round, with ranges of nothing as yet. Subclasses of them,
    whose arithmetic is their own, stay as they are."""
    for module in model.modules():
        if type(module) in ROUNDED:
            module.__class__ = ROUNDED[type(module)]
            module.register_buffer(RANGE, module.weight.new_zeros(2))  # lowest and highest
            module.register_buffer("reached", module.weight.new_zeros(2), persistent=False)  # −lowest and highest


def begin_rounding(model: nn.Module, pictures: Tensor, name: str) -> None:
    """`set_rounding`, with the ranges that `pictures` (B, C, H, W), normalised, reach. Raises ConfigError where there
    is nothing to round."""
    like = copy.deepcopy(model).train()  # which moves the statistics of its batch norms
    ranges = {}

    def note(path: str):
        def hook(module, args):
            low, high = args[0].aminmax()
            ranges[path] = torch.stack([low.clamp(max=0), high.clamp(min=0)])

        return hook

    for path, module in like.named_modules():
        if type(module) in ROUNDED:
            module.register_forward_pre_hook(note(path))
    with torch.no_grad():
        like(pictures)
    set_rounding(model)
    layers = rounded_layers(model)
    if not layers:
        raise ConfigError(f"student.int8: {name} has no nn.Conv2d or nn.Linear whose numbers could be rounded")
    for path, layer in layers.items():
        if path in ranges:
            layer.input_range.copy_(ranges[path])


class InputRanges:
    """The ranges of a network's layers over a run: of the global batch, whatever the number of workers."""

    def __init__(self, model: nn.Module):
        layers = rounded_layers(model).values()
        self.ranges = [layer.input_range for layer in layers]
        self.reached = [layer.reached for layer in layers]

    @torch.no_grad()
    def follow(self, context) -> None:
        """After a step: move towards what its pictures reached. One short exchange between workers."""
        if not self.ranges:
            return
        now = context.max(torch.stack(self.reached))  # (layers, 2)
        old, new = torch.stack(self.ranges), now * now.new_tensor([-1.0, 1.0])
        ran = now.any(dim=1, keepdim=True)  # not every layer does in every step
        torch._foreach_copy_(self.ranges, list(torch.where(ran, old.lerp(new, MOMENTUM), old)))
        self.forget()

    def forget(self) -> None:
        """What was reached since `follow`, by batches that do not count."""
        if self.reached:
            torch._foreach_zero_(self.reached)


def without_rounding(model: nn.Module) -> tuple[nn.Module, dict[str, tuple[float, float]]]:
    """A copy whose layers do not round, and the range of each one's input by path."""
    model = copy.deepcopy(model)
    layers = rounded_layers(model)
    ranges = {path: tuple(layer.input_range.tolist()) for path, layer in layers.items()}
    for layer in layers.values():
        layer.__class__ = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
        del layer.input_range, layer.reached
    return model, ranges


def without_ranges(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the ranges of a network that rounds, where the one of the state dict `own` does not."""
    return {name: x for name, x in state.items() if name in own or name.rpartition(".")[2] != RANGE}
