"""MODEL_CARD.md: what a person must know before using a student."""

from __future__ import annotations

from ..config.schema import Config
from .folder import RunFolder, read_json
from .summary import teachers_of


def model_card(run: RunFolder, config: Config, summary: dict) -> str:
    environment = read_json(run.path / "environment.json")
    command = (run.path / "command.txt").read_text(errors="replace").strip()
    data, best = config.data, summary["best"]
    rows = [("student, last epoch", config.student.model, summary["last"]["top1"])]
    rows.append((f"student, best epoch ({best['epoch']}, by {best['split']})", config.student.model, best["test_top1"]))
    if "alone" in summary:
        rows.insert(0, ("student alone, last epoch", config.student.model, summary["alone"]["last"]["top1"]))
    teachers = teachers_of(summary)
    rows[:0] = [(what, teacher["model"], teacher["top1"]) for what, teacher in teachers]
    lines = [
        f"# {run.name}",
        "",
        f"A `{config.student.model}` ({summary['parameters']:,} parameters) trained on `{data.name}`"
        + (f", distilled from {' and '.join(sorted(_names(config)))}." if teachers else "."),
        "",
        "| network | model | test accuracy |",
        "| --- | --- | ---: |",
        *(f"| {what} | {model} | {top1:.2%} |" for what, model, top1 in rows),
        "",
        "## Files",
        "",
        "- `student.safetensors`: weights of the last epoch. `best.safetensors`: of the best one.",
        "- `config.yaml`: the resolved config; `kdray train` runs it again.",
        "",
        "## Training",
        "",
        f"- losses: {', '.join(f'{label} (weight {_weight(loss.weight)})' for label, loss in config.losses.items())}",
        f"- {config.schedule.epochs} epochs, global batch {data.batch_size}, {config.optimizer.name}, "
        f"learning rate {config.optimizer.lr:g}, "
        f"precision {config.engine.precision}, seed {config.seed}",
        f"- augmentation: {', '.join(map(_augmentation, data.augment)) or 'none'}"
        + (f"; {_mix(*data.mix.way)}" if data.mix else "")
        + (f"; {data.samples} training samples" if data.samples else ""),
        f"- {summary['seconds']:,.0f} s of training on {_hardware(environment)}",
        f"- command: `{command}`",
        f"- {', '.join(f'{name} {version}' for name, version in environment['packages'].items() if version)}",
        "",
        "## Limits",
        "",
        "The accuracies are of one seed on the test set of the data set named above. "
        + ("The best epoch was chosen on the test set itself, which flatters it. " if best["split"] == "test" else "")
        + "Nothing is known of other data, of fairness, or of robustness.",
    ]
    return "\n".join(lines) + "\n"


def _names(config: Config) -> set[str]:
    return {f"`{teacher.model}`" for teacher in config.all_teachers.values()}


def _weight(weight) -> str:
    if isinstance(weight, float | int):
        return f"{weight:g}"
    begin = f"{weight.start or 0:g} to " if weight.warmup else ""
    return f"{begin}{weight.value:g}" + (f" to {weight.end or 0:g}" if weight.decay else "")


def _augmentation(entry: str | dict) -> str:
    """`crop (padding 1)`"""
    if isinstance(entry, str):
        return entry
    ((name, options),) = entry.items()
    return name + (f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else "")


def _mix(name: str, options) -> str:
    """`mixup (alpha 1.0, p 1.0)`"""
    return _augmentation({name: options.model_dump()})


def _hardware(environment: dict) -> str:
    gpus = environment["gpus"]
    return f"{len(gpus)} × {gpus[0]}" if gpus else f"{environment['cpus']} CPU cores"
