"""Whether a tensor is in shares (sharding.py)."""

from __future__ import annotations

import sys


def in_shares(x) -> bool:
    """Nothing is, where nobody has imported what makes shares. That takes a second, which other runs need not wait."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(x, tensors.DTensor)
