"""How an answer is stored: as fp32, fp16 or bf16 numbers, or the logits as the k largest and the rest in one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OUTPUTS = ("logits", "embedding")
"""What can be stored: a vector a picture."""


@dataclass(frozen=True)
class Codec:
    dtype: str = "fp16"
    top_k: int | None = None

    def describe(self) -> dict:
        return {"dtype": self.dtype, "top_k": self.top_k}

    def encode(self, output: str, x: Tensor) -> dict[str, Tensor]:
        """x (n, D), of the network's own dtype, as the tensors of a shard, each of n rows.

        Top-k logits: `values` (n, k), the k largest; `indices` (n, k), their classes; `rest` (n,), the log-sum-exp of
        the others. Raises ConfigError where the dtype cannot hold the numbers.
        """
        if output == "logits" and self.top_k is not None:
            if self.top_k >= x.shape[1]:
                raise ConfigError(
                    f"teacher.cache.top_k is {self.top_k}, and there are {x.shape[1]} classes: give fewer, or leave "
                    "top_k out to store all logits"
                )
            values, indices = x.topk(self.top_k, dim=1)
            rest = x.scatter(1, indices, -torch.inf).logsumexp(dim=1)
            parts = {"values": self._cast(values, output), "rest": self._cast(rest, output)}
            return {**parts, "indices": indices.to(_smallest(x.shape[1]))}
        return {"values": self._cast(x, output)}

    def decode(self, output: str, parts: dict[str, Tensor], width: int, dtype: torch.dtype) -> Tensor:
        """(n, width) in `dtype`. The mass of the rest is spread evenly over its classes."""
        values = parts["values"].to(dtype)
        if "rest" not in parts:
            return values
        each = parts["rest"].to(dtype) - math.log(width - values.shape[1])
        return each[:, None].repeat(1, width).scatter(1, parts["indices"].long(), values)

    def bytes(self, output: str, width: int) -> int:
        """Of one picture's answer (D = width), its key aside."""
        parts = self.encode(output, torch.zeros(1, width))
        return sum(part.nbytes for part in parts.values())

    def _cast(self, x: Tensor, output: str) -> Tensor:
        stored = x.to(DTYPES[self.dtype])
        if not stored.isfinite().all():
            if not x.isfinite().all():
                raise ConfigError(f"the teacher's {output} are not finite (inf or NaN): such a teacher teaches nothing")
            raise ConfigError(
                f"the teacher's {output} reach {x.abs().max():.3g}, more than {self.dtype} can hold: "
                "set teacher.cache.dtype to bf16 or fp32"
            )
        return stored


def _smallest(classes: int) -> torch.dtype:
    """The smallest type that names a class."""
    return torch.uint8 if classes <= 2**8 else torch.int16 if classes <= 2**15 else torch.int32
