"""Two things at once on one GPU: its kernels for a small batch are too small to fill it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class Beside:
    """Kernels that are launched in `fork()` run while those after it do, until `join()`. Without a GPU: in turn."""

    def __init__(self, device: torch.device | None = None):
        self.stream = torch.cuda.Stream(device) if device and device.type == "cuda" else None

    @contextlib.contextmanager
    def fork(self) -> Iterator[None]:
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            yield

    def join(self) -> None:
        if self.stream:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
