"""What a run will do, before it does it."""

from __future__ import annotations

from math import ceil

from ..config.schema import Config
from ..engine.build import Parts


def plan(config: Config, parts: Parts) -> str:
    data, size = parts.data, config.data.batch_size
    steps = len(data.train) // size if config.data.last_batch == "drop" else ceil(len(data.train) / size)
    lines = [
        f"{config.name}: {config.schedule.epochs} epochs of {steps} steps, global batch {size}, {config.scale.num_workers or 'no'} Ray workers",
        f"  data     {config.data.name}: {len(data.train):,} training, {len(data.validation) if data.validation else 0:,} validation, "
        f"{len(data.test):,} test samples, {data.num_classes} classes",
        f"  student  {config.student.model}: {count(parts.student.model):,} parameters",
    ]
    if config.teacher:
        how = f"trained first by {config.teacher.train}" if config.teacher.train else "measured before the first step"
        lines.append(f"  teacher  {config.teacher.model}: {count(parts.teacher.network.model):,} parameters, {how}")
    for label, distiller in parts.objective.by_label():
        buffers = sum(b.nbytes for b in distiller.buffers())
        lines.append(f"  loss     {label}: {count(distiller):,} parameters, {buffers / 1e6:,.1f} MB of banks and constants a worker")
    return "\n".join(lines)


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())
