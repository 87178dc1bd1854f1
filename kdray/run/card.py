"""MODEL_CARD.md: what a person must know before using a student."""

from __future__ import annotations

from ..config.schema import Config
from ..engine.checkpoint import sha256_of
from .folder import RunFolder, read_json
from .forms import Teachers
from .summary import teachers_of
from .wording import counted


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
        *(
            f"- `{file.name}`: weights of the {which} epoch, sha256 `{sha256_of(file)}`"
            for which, file in (("last", run.weights(False)), ("best", run.weights(True)))
        ),
        "- `config.yaml`: the resolved config; `kdray train` runs it again.",
        "",
        "## Use",
        "",
        f"- `kdray predict {run.name} PICTURE` says what is on a picture",
        f"- `kdray export {run.name}` writes the network with its preparation of pictures, to be run without kdray",
        f"- `kdray evaluate {run.name} --corrupt`: whether its confidence can be trusted, what noise and blur do to it",
        "",
        "## Data",
        "",
        f"- `{data.name}`; fingerprint of its pictures and classes: `{run.data}`",
        *(f"- {line}" for line in _trained_on(config)),
        "",
        "## Training",
        "",
        f"- losses: {', '.join(f'{label} (weight {_weight(loss.weight)})' for label, loss in config.losses.items())}",
        f"- {counted(config.schedule.epochs, 'epoch')}, global batch {data.batch_size}, {config.optimizer.name}, "
        f"learning rate {config.optimizer.lr:g}, "
        f"precision {config.engine.precision}, seed {config.seed}",
        f"- augmentation: {', '.join(map(_augmentation, data.augment)) or 'none'}"
        + (f"; {_mix(*data.mix.way)}" if data.mix else ""),
        *(f"- {line}" for line in (*_began_with(config), *_trained_for(config))),
        *(f"- {name}: {_source(section, run, name)}" for name, section in config.all_teachers.items()),
        f"- {summary['seconds']:,.0f} s of training on {_hardware(environment)}",
        f"- command: `{command}`",
        f"- {', '.join(f'{name} {version}' for name, version in environment['packages'].items() if version)}",
        *(f"- plugin {name}" for name in _plugins(environment)),
        "",
        "## Limits",
        "",
        "The accuracies are of one seed on the test set of the data set named above. "
        + ("The best epoch was chosen on the test set itself, which flatters it. " if best["split"] == "test" else "")
        + "Nothing is known of other data, of fairness, or of robustness.",
        *(
            [f"{summary['skipped']} batches were left out, since their loss was no number."]
            if "skipped" in summary
            else []
        ),
    ]
    return "\n".join(lines) + "\n"


def _trained_on(config: Config) -> list[str]:
    """What is not the data set as it is."""
    data, found = config.data, []
    if data.samples:
        found.append(f"{data.samples:,} training samples, drawn evenly over the classes")
    if data.validation:
        found.append(f"{data.validation:.0%} of the training set was held out for validation")
    if data.leave_out:
        found.append(f"trained on nothing of the classes {', '.join(map(str, data.leave_out))}")
    if data.label_noise:
        found.append(f"{data.label_noise:.0%} of the training samples had a wrong class, on purpose")
    return found


def _began_with(config: Config) -> list[str]:
    student = config.student
    if student.pruned:
        share, source = student.pruned.share, student.pruned.source or "a narrower network"
        return [f"began with {source}, {share:.0%} of its channels taken out"]
    given = student.weights or student.checkpoint
    return [f"began with the weights {given}"] if given else []


def _trained_for(config: Config) -> list[str]:
    rounded = "for 8 bits: what its layers read, and their weights, were rounded to 256 levels"
    return [rounded] if config.student.int8 else []


def _source(teacher, run: RunFolder, name: str) -> str:
    """Where a teacher's weights are from."""
    known = (read_json(run.path / "teachers.json", Teachers) or {}).get(name, {})
    if known.get("run"):
        return f"run `{known['run']}`"
    return f"weights `{teacher.weights or teacher.checkpoint or 'initial'}`"


def _plugins(environment: dict) -> list[str]:
    """Those that are not kdray's own."""
    return [
        f"{plugin['name']} ({plugin['distribution'] or 'a file'} {plugin['version']}, sha256 {plugin['sha256'][:12]}…)"
        for plugin in environment["plugins"]
        if plugin["distribution"] != "kdray" and not plugin["error"]
    ]


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
