"""What a method's networks say of the test set, over its seeds: numbers of `kdray.run.analysis`, as JSON has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.build import Data
from ..data.feed import Feed
from ..run import analysis
from ..run.cka import cka
from .inside import mapped
from .networks import Answers
from .report_table import spread

STUDENT, ALONE = "student", "student alone"
SOFTENED = (1.0, 4.0, 16.0)
"""Temperatures at which single pictures are shown."""
SHOWN = 2
"""Pictures that are shown of each kind: the first ones, and those with the largest divergence."""


@dataclass
class Asked:
    """What the networks of one run say. labels: (N,) of the test set, (M,) of the validation split. students: the run's
    and the one alone; teachers: by heading."""

    labels: Tensor
    validation_labels: Tensor | None
    students: dict[str, Answers]
    teachers: dict[str, Answers]

    @property
    def all(self) -> dict[str, Answers]:
        return self.students | self.teachers


def answers(asked: list[Asked]) -> dict:
    """All of it but single pictures; of the networks that every seed has."""
    students = [name for name in (STUDENT, ALONE) if all(name in one.students for one in asked)]
    teachers = [name for name in asked[0].teachers if all(name in one.teachers for one in asked)]
    pairs = {
        teacher: {name: [(one.teachers[teacher].test, one.students[name].test) for one in asked] for name in students}
        for teacher in teachers
    }
    return {
        "per_class": per_class(asked, [*students, *teachers]),
        "confusion": plain(sum(analysis.confusion(one.students[STUDENT].test, one.labels) for one in asked)),
        "calibration": {name: calibration([(one, one.all[name]) for one in asked]) for name in (*students, *teachers)},
        "agreement": {teacher: {name: agreement(some) for name, some in of.items()} for teacher, of in pairs.items()},
        "correlation": {
            teacher: {name: correlation(some) for name, some in of.items()} for teacher, of in pairs.items()
        },
        "stages": stages(asked, teachers, students),
        "map": embedding_map(asked[-1], [*teachers, *reversed(students)]),
    }


def per_class(asked: list[Asked], names: list[str]) -> dict:
    """accuracy: by network that of each class. difference: the student's less that of `against`, the next of `names`,
    and its deviation over the seeds. Means over the seeds."""
    found = {
        name: torch.stack(
            [analysis.class_accuracy(analysis.confusion(one.all[name].test, one.labels)) for one in asked]
        )
        for name in names
    }
    against = next(iter(names[1:]), None)
    difference = found[STUDENT] - found[against] if against else None
    return {
        "accuracy": {name: plain(values.mean(0)) for name, values in found.items()},
        "against": against,
        "difference": plain(difference.mean(0)) if against else None,
        "deviation": plain(difference.std(0)) if against and len(asked) > 1 else None,
    }


def calibration(pairs: list[tuple[Asked, Answers]]) -> dict:
    """Before and after a temperature is fitted, on pictures that it was not fitted on. A teacher is never fitted on the
    student's validation split, which its own training set may hold."""
    found = []
    for one, of in {id(of): (one, of) for one, of in pairs}.values():  # the teacher of several seeds counts once
        held_out = None if of.validation is None else (of.validation, one.validation_labels)
        found.append(analysis.calibrated(of.test, one.labels, held_out))
    sides = {
        "before": [(one.before, one.nll_before) for one in found],
        "after": [(one.after, one.nll_after) for one in found],
    }
    return {
        "fitted_on": "half of the test set" if pairs[0][1].validation is None else "the validation split",
        "pictures": int(found[0].before.counts.sum()),
        "temperature": spread([one.temperature for one in found]),
        **{
            when: {
                "ece": spread([reliability.ece for reliability, _ in of]),
                "nll": spread([nll for _, nll in of]),
                "bins": pooled([reliability for reliability, _ in of]),
            }
            for when, of in sides.items()
        },
    }


def pooled(of_seeds: list[analysis.Reliability]) -> dict:
    """The bins over the pictures of all seeds."""
    counts = sum(one.counts for one in of_seeds)
    some = counts.clamp(min=1)
    return {
        "counts": plain(counts),
        "confidence": plain(sum(one.counts * one.confidence for one in of_seeds) / some),
        "accuracy": plain(sum(one.counts * one.accuracy for one in of_seeds) / some),
    }


def agreement(pairs: list[tuple[Tensor, Tensor]]) -> dict:
    """pairs: logits of teacher and student, by seed."""
    return {
        "top1": spread([analysis.agreement(*pair) for pair in pairs]),
        "kl": spread([float(analysis.divergences(*pair).mean()) for pair in pairs]),
    }


def correlation(pairs: list[tuple[Tensor, Tensor]]) -> list[list[float]]:
    return plain(torch.stack([analysis.correlation_difference(*pair) for pair in pairs]).mean(0))


def stages(asked: list[Asked], teachers: list[str], students: list[str]) -> dict:
    """layers: by network the names of its stages. cka: by teacher and student, a row a stage of the teacher's, the mean
    over the seeds. Of networks whose stages are known."""
    layers = {name: list(asked[0].all[name].inside.grams) for name in (*teachers, *students)}

    def matrix(teacher: str, student: str) -> list[list[float]]:
        pairs = [(one.teachers[teacher].inside.grams, one.students[student].inside.grams) for one in asked]
        of_seeds = [[[cka(a[i], b[j]) for j in layers[student]] for i in layers[teacher]] for a, b in pairs]
        return plain(torch.tensor(of_seeds, dtype=torch.float64).mean(0))

    known = {name: names for name, names in layers.items() if names}
    return {
        "layers": known,
        "cka": {
            teacher: {name: matrix(teacher, name) for name in students if name in known}
            for teacher in teachers
            if teacher in known
        },
    }


def embedding_map(one: Asked, names: list[str]) -> dict:
    """Of one seed: labels of the pictures, and by network their places in two dimensions."""
    there = [name for name in names if one.all[name].inside.embedding is not None]
    return {
        "labels": one.labels[mapped(one.labels)].tolist(),
        "places": {name: one.all[name].inside.map for name in there},
    }


def softened(one: Asked, teacher: str, data: Data) -> tuple[list[dict], Tensor]:
    """The first test pictures, and those of which teacher and student think most differently: probabilities at each
    temperature, and the pictures, uint8 (n, C, H, W)."""
    said = {"teacher": one.teachers[teacher].test, "student": one.students[STUDENT].test}
    far = analysis.divergences(*said.values()).argsort(descending=True, stable=True)
    positions = list(dict.fromkeys([*range(min(SHOWN, len(far))), *far[:SHOWN].tolist()]))
    feed = Feed(data.test, data.evaluate, 1, torch.device("cpu"))
    pictures = next(iter(feed.batches([torch.tensor(positions)], view=0)))
    rows = [
        {
            "position": position,
            "label": int(one.labels[position]),
            "probabilities": {
                who: [plain(analysis.softened(logits[[position]], t)[0]) for t in SOFTENED]
                for who, logits in said.items()
            },
        }
        for position in positions
    ]
    return rows, pictures


def plain(values: Tensor) -> list:
    """None for nan."""
    if values.dim() > 1:
        return [plain(row) for row in values]
    return [None if x != x else x for x in values.tolist()]
