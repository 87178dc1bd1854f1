"""What the stored forms of a teacher cache cost: bytes a picture, and the difference to a loss and its gradient.

    python benchmarks/cache_forms.py CONFIG [KEY=VALUE…] [--batches 20]

The config's data, networks and losses, in fp32. Each loss that reads the teacher is given its answers as they are, and
as they come out of each stored form. Figures are medians over batches of |L' − L| / |L| and ‖g' − g‖ / ‖g‖, g being the
gradient at the student's logits and embedding, and at the loss's own heads. The student is as it is initialised, or as
`student.checkpoint` says. Prints a Markdown table; bytes are those of the logits + those of the embedding.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.data.feed import Feed
from kdray.data.views import batches
from kdray.distiller import Batch, Step
from kdray.engine.build import build
from kdray.registry import Registry
from kdray.teacher.codec import OUTPUTS, Codec

FORMS = [Codec(dtype) for dtype in ("fp32", "fp16", "bf16")] + [Codec("fp16", k) for k in (50, 20, 10, 5, 3)]


def heard(outputs, form: Codec):
    """What a run hears of these outputs when they are stored in this form, and the bytes of a picture, by output."""
    changed, size = {}, {}
    for output in OUTPUTS:
        x = getattr(outputs, output)
        if x is not None:
            parts = form.encode(output, x)
            changed[output] = form.decode(output, parts, x.shape[1], x.dtype)
            size[output] = sum(part.nbytes for part in parts.values()) // len(x)
    return replace(outputs, **changed), size


def gradients(distiller, student, teacher, batch, step) -> tuple[float, torch.Tensor]:
    """The loss, and its gradient at what it reads of the student's vectors and at its own parameters."""
    read = [output for output in OUTPUTS if output in distiller.requires.student]
    leaves = {output: getattr(student, output).detach().requires_grad_() for output in read}
    result = distiller(replace(student, **leaves), teacher, batch, step())
    total = sum(result.values()) if isinstance(result, dict) else result
    grads = torch.autograd.grad(total, [*leaves.values(), *distiller.parameters()], allow_unused=True)
    return total.item(), torch.cat([g.flatten() for g in grads if g is not None])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--batches", type=int, default=20)
    args = parser.parse_args()
    registry = Registry.default()
    config = load_config(Path(args.config), [*args.overrides, "engine.precision=fp32"], registry=registry).config
    given = {name: teacher.checkpoint for name, teacher in config.all_teachers.items() if teacher.checkpoint}
    parts = build(config, registry, find_project().data, given, torch.device("cpu"))
    labels = parts.data.train.labels
    order = batches(len(labels), config.data.batch_size, config.seed, 0, "drop")[: args.batches]
    feed = Feed(parts.data.train, parts.data.augment, config.data.threads, torch.device("cpu"))
    classes = parts.data.num_classes
    forms = [form for form in FORMS if form.top_k is None or form.top_k < classes]
    found = {(form, label): [] for form in forms for label in config.losses}
    sizes = {form: {} for form in forms}
    parts.student.train()
    for number, (rows, pictures) in enumerate(zip(order, feed.batches(order, view=0))):
        with torch.no_grad():
            student = parts.student(parts.normalize(pictures, torch.float32))
            teachers = parts.teachers(pictures, {}, list(config.losses), {})
        batch = Batch(index=rows, target=labels[rows], size=len(rows))

        def step(number=number):
            return Step(number=number, epoch=0, generator=torch.Generator().manual_seed(number))

        for label, distiller in parts.objective.by_label():
            if not distiller.requires.teacher:
                continue
            loss, exact = gradients(distiller, student, teachers[label], batch, step)
            for form in forms:
                teacher, size = heard(teachers[label], form)
                sizes[form] |= size
                other, gradient = gradients(distiller, student, teacher, batch, step)
                found[form, label].append(
                    (abs(other - loss) / abs(loss), float((gradient - exact).norm() / exact.norm()))
                )
            distiller.after_backward(batch, step())
    losses = [label for label in config.losses if found[forms[0], label]]
    heads = " | ".join(f"{label}: loss | {label}: gradient" for label in losses)
    print(f"| form | bytes a picture | {heads} |\n| --- | ---: |{' ---: | ---: |' * len(losses)}")
    for form in forms:
        name = form.dtype + (f", {form.top_k} of {classes} logits" if form.top_k else "")
        medians = [statistics.median(column) for label in losses for column in zip(*found[form, label])]
        cells = [name, " + ".join(map(str, sizes[form].values())), *(f"{x:.1e}" if x else "0" for x in medians)]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
