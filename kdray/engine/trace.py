"""A trace of some steady steps of the main loop, by torch's profiler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..clock import Part, timed

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to standard error when it starts and stops

WARM, STEPS = 10, 5
"""Steps that are left out before it, where there are so many; and steps that are in it, of one epoch."""
MOST = 10
"""Operators that are told."""


class Trace:
    def __init__(self, file: Path | None, device: torch.device):
        """file: where it is written, in Chrome's format; None: nothing is traced."""
        self.file, self.device = file, device
        self.done = 0
        self.operators: list[dict] = []
        """The most costly ones, once it is written: name, calls and own seconds, share of all of them."""

    def steps(self, numbers: range, last: bool) -> Iterator[int]:
        """`numbers` of an epoch's steps, of which some are traced, once. last: whether no epoch follows."""
        self.done += len(numbers)
        enough = self.done > WARM or last
        return iter(numbers) if self.file is None or self.operators or not enough else self._traced(numbers)

    def _traced(self, numbers: range) -> Iterator[int]:
        before = max(0, min(WARM - (self.done - len(numbers)), len(numbers) - STEPS))
        yield from numbers[:before]
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        with timed(Part.TRACING):
            profiler = profile(activities=activities)
            profiler.start()
        try:
            yield from numbers[before : before + STEPS]
        finally:
            with timed(Part.TRACING):
                profiler.stop()
                self._write(profiler)
        yield from numbers[before + STEPS :]

    def _write(self, profiler: profile) -> None:
        self.file.parent.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(self.file))
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        found = sorted(profiler.key_averages(), key=lambda operator: getattr(operator, key), reverse=True)
        total = sum(getattr(operator, key) for operator in found) or 1.0
        self.operators = [
            {
                "name": operator.key,
                "calls": operator.count,
                "seconds": getattr(operator, key) / 1e6,
                "share": getattr(operator, key) / total,
            }
            for operator in found[:MOST]
        ]
