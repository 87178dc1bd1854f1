"""The arithmetic of the networks; losses are computed in the dtype of the parameters."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..distiller import Outputs


class Precision:
    """`fp32`, `fp64`, or `bf16`: parameters in fp32, the network under autocast."""

    def __init__(self, name: str, device: torch.device):
        self.dtype = torch.float64 if name == "fp64" else torch.float32
        self.autocast = name == "bf16"
        self.device = device

    def run(self, network: nn.Module, x: Tensor) -> Outputs:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = network(x)
        return self._cast(outputs) if self.autocast else outputs

    def _cast(self, outputs: Outputs) -> Outputs:
        def cast(x):
            return x.to(self.dtype) if isinstance(x, Tensor) else x

        return replace(
            outputs,
            logits=cast(outputs.logits),
            embedding=cast(outputs.embedding),
            features=[cast(x) for x in outputs.features],
            preactivations=[cast(x) for x in outputs.preactivations],
        )
