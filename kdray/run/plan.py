"""What a run will do, before it does it."""

from __future__ import annotations

from math import ceil
from pathlib import Path

from ..config.schema import Config
from ..engine.build import Parts
from ..engine.phases import phases
from ..teacher.setup import Place


def plan(config: Config, parts: Parts, weights: dict[str, str], caches: dict[str, Place]) -> dict:
    """In numbers, of the whole run; `bytes` of a loss are its banks and constants on each worker. weights: by teacher,
    their file where there is one already; caches: where its answers are stored."""
    data, size = parts.data, config.data.batch_size
    found = {
        "name": config.run.name or config.name,
        "epochs": config.schedule.epochs,
        "steps_per_epoch": len(data.train) // size
        if config.data.last_batch == "drop"
        else ceil(len(data.train) / size),
        "batch_size": size,
        "num_workers": config.scale.num_workers,
        "data": {
            "name": config.data.name,
            "train": len(data.train),
            "validation": len(data.validation) if data.validation else 0,
            "test": len(data.test),
            "classes": data.num_classes,
        },
        "student": {"model": config.student.model, "parameters": count(parts.student.model)},
        "losses": {
            label: {"parameters": count(distiller), "bytes": sum(b.nbytes for b in distiller.buffers())}
            for label, distiller in parts.objective.by_label()
        },
    }
    found["teachers"] = {
        name: {
            "model": teacher.model,
            "parameters": parts.teachers.by_name[name].count,
            "train": teacher.train,
            "trained": str(Path(weights[name]).parent) if teacher.train and name in weights else None,
            "cache": caches[name].where if name in caches else None,
            "fills_cache": name in caches and caches[name].fill,
        }
        for name, teacher in config.all_teachers.items()
    }
    found["stages"] = {
        phase.name: phase.stage.epochs for phase in phases(parts.objective.by_label()) if phase.stage is not None
    }
    return found


def describe(plan: dict) -> str:
    """The same in words."""
    data = plan["data"]
    workers = f"{plan['num_workers']} Ray workers" if plan["num_workers"] else "in this process"
    lines = [
        f"{plan['name']}: {plan['epochs']} epochs of {plan['steps_per_epoch']} steps, "
        f"global batch {plan['batch_size']}, {workers}",
        f"  data     {data['name']}: {data['train']:,} training, {data['validation']:,} validation, "
        f"{data['test']:,} test samples, "
        f"{data['classes']} classes",
        f"  student  {plan['student']['model']}: {plan['student']['parameters']:,} parameters",
    ]
    for name, teacher in plan["teachers"].items():
        how = f"trained first by {teacher['train']}" if teacher["train"] else "measured before the first step"
        if teacher["trained"]:
            how = f"trained already: {teacher['trained']}"
        if teacher["cache"]:
            how = f"answers {'are added to' if teacher['fills_cache'] else 'come from'} {teacher['cache']}"
        which = "" if name == "teacher" else f"{name}, "
        lines.append(f"  teacher  {which}{teacher['model']}: {teacher['parameters']:,} parameters, {how}")
    for name, epochs in plan["stages"].items():
        lines.append(f"  stage    {name}: {epochs} epochs before the main loop")
    for label, loss in plan["losses"].items():
        lines.append(
            f"  loss     {label}: {loss['parameters']:,} parameters, "
            f"{loss['bytes'] / 1e6:,.1f} MB of banks and constants a worker"
        )
    return "\n".join(lines)


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())
