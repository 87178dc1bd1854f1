"""The arithmetic of the networks; losses are computed in the dtype of the parameters."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..distiller import Distiller, Outputs


class Precision:
    """`fp32`, `fp64`, or `bf16`: parameters in fp32, the network under autocast. `auto`, which a run has decided before
    it begins, counts as fp32."""

    def __init__(self, name: str, device: torch.device):
        self.name = name
        self.dtype = torch.float64 if name == "fp64" else torch.float32
        self.autocast = name == "bf16"
        self.device = device

    def run(self, network: nn.Module, x: Tensor) -> Outputs | Tensor:
        """What `network` says of normalised pictures (B, C, H, W): logits, or `Outputs` of a tapped one."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = network(x)
        return cast(outputs, self.dtype) if self.autocast else outputs


def cast(value, dtype: torch.dtype):
    """What a network says (of `Outputs`: all but the pictures), in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, list | tuple):
        return type(value)(cast(x, dtype) for x in value)
    if isinstance(value, Outputs):
        kinds = ("logits", "embedding", "last_map", "features", "preactivations", "head")
        return replace(value, **{kind: cast(getattr(value, kind), dtype) for kind in kinds})
    return value


def moved(distiller: Distiller, device: torch.device, dtype: torch.dtype) -> Distiller:
    """There, its numbers in fp32 as `dtype`. Those that it keeps in another dtype, it does so on purpose."""
    return distiller._apply(lambda x: x.to(device, dtype if x.dtype == torch.float32 else x.dtype))
