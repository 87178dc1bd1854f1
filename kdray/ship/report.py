"""`kdray report`: what runs came to, as numbers, as pictures, and as a page that needs no network.

report.json   all the numbers        *.png   the pictures        report.html   both, in one file
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .. import __version__
from ..data.build import Data
from ..errors import ConfigError, KdrayError
from ..registry import Registry
from ..run import analysis, report_plots
from ..run.folder import RunFolder, replace_text
from ..run.report_page import page
from .finished import Finished, Method, methods_of, read_all
from .inside import COMPARED, SIDE
from .networks import Networks
from .report_answers import ALONE, SOFTENED, STUDENT, Asked, answers, softened
from .report_table import curves, student_row, teacher_rows


def report(runs: list[RunFolder], output: Path | None, registry: Registry, data_root: Path) -> tuple[Path, list[str]]:
    """Write a report of finished runs to `output`, or to report/ in the first one's folder. Returns the page, and what
    was left out of it and why.

    Raises ConfigError for a run that is not finished, damaged, or named twice."""
    made = Report(methods_of(read_all(runs, registry)), Networks(registry, data_root))
    numbers = made.numbers()
    folder = output or runs[0].path / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        numbers["pictures"] = report_plots.draw(numbers, made.shown, folder)
        replace_text(folder / "report.json", json.dumps(numbers, allow_nan=False) + "\n")
        replace_text(folder / "report.html", page(numbers, folder))
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {folder}: {error.strerror or error}. Choose another folder with --output"
        ) from error
    return folder / "report.html", numbers["left_out"]


@dataclass
class Report:
    methods: list[Method]
    networks: Networks
    left_out: list[str] = field(default_factory=list)
    shown: dict[str, Tensor] = field(default_factory=dict)
    """By method the pictures whose softened outputs are shown, uint8 (n, C, H, W)."""

    def numbers(self) -> dict:
        """Everything that the page says; shares are in 0..1, and a number that is not there is None.

        table: a row a network; curves: by row; methods: by label, what its students answer to the test set; left_out:
        which sections are not there, and why."""
        methods = {method.label: self._answers(method) for method in self.methods}
        teachers, alone, students, lines = {}, {}, {}, []
        for method in self.methods:
            for one in method.runs:
                for key, row in teacher_rows(one, self.networks.registry, self.networks.macs):
                    teachers.setdefault(key, row)
            if baselines := self._baselines(method):
                names = tuple(one.run.name for one in baselines)
                what = f"student alone{f' ({len(alone) + 1})' if alone and names not in alone else ''}"
                if names not in alone:
                    alone[names] = student_row("alone", what, baselines, self.networks.macs)
                    lines.append({"what": what, "alone": True, **curves(baselines)})
            students[method.label] = student_row("student", method.label, method.runs, self.networks.macs)
        lines += [{"what": method.label, "alone": False, **curves(method.runs)} for method in self.methods]
        return {
            "kdray": __version__,
            "made": time.strftime("%Y-%m-%d %H:%M"),
            "bins": analysis.BINS,
            "temperatures": SOFTENED,
            "compared": COMPARED,
            "side": SIDE,
            "table": [*teachers.values(), *alone.values(), *students.values()],
            "curves": lines,
            "methods": methods,
            "left_out": list(dict.fromkeys(self.left_out)),
        }

    @contextlib.contextmanager
    def _unless(self, method: Method, what: str) -> Iterator[None]:
        """What cannot be had here is left out, and the reader is told why."""
        try:
            yield
        except KdrayError as error:
            self.left_out.append(f"{method.label}: {what}: {error}")

    def _baselines(self, method: Method) -> list[Finished]:
        """The runs of the student alone that were trained beside; seeds may share one."""
        found = {}
        for one in method.runs:
            with self._unless(method, "the student alone and comparison with it"):
                if alone := one.alone:
                    found[alone.path] = Finished.read(alone, self.networks.registry)
        return list(found.values())

    # -- what the networks say -----------------------------------------------------------------------------------------

    def _answers(self, method: Method) -> dict:
        """Numbers of a method's students over all seeds; none of them where the data cannot be had."""
        found = {"runs": [one.run.name for one in method.runs], "seeds": [one.config.seed for one in method.runs]}
        asked, data = [], None
        for one in method.runs:
            data = None  # that of the seed before is not kept beside
            with self._unless(method, "all that needs the test pictures"):
                data = self.networks.data(one)
            if data is None:
                return found
            asked.append(self._ask(method, one, data))
        found |= {"classes": data.test.source.class_names, **answers(asked)}
        if teacher := next(iter(found["agreement"]), None):
            found["softened"], self.shown[method.label] = softened(asked[-1], teacher, data)
        return found

    def _ask(self, method: Method, one: Finished, data: Data) -> Asked:
        students = {STUDENT: self.networks.ask(one, one.run.weights(), "student", data)}
        if one.alone:
            with self._unless(method, "the student alone and comparison with it"):
                alone = Finished.read(one.alone, self.networks.registry)
                students[ALONE] = self.networks.ask(alone, alone.run.weights(), "student", data)
        teachers, of = {}, one.config.all_teachers
        if not of:
            self.left_out.append(
                f"{method.label}: agreement, correlation, similarity of stages, softened outputs: it has no teacher"
            )
        for name in of:
            heading = "teacher" if one.config.teacher else f"teacher {name}"
            with self._unless(method, f"all that shows {heading} or compares with it"):
                teachers[heading] = self.networks.ask(one, one.teacher_weights(name), name, data)
        for name, of_network in (students | teachers).items():
            self.left_out += [
                f"{method.label}: {what}: {name}: {why}" for what, why in of_network.inside.missing.items()
            ]
        held_out = data.validation.labels if data.validation else None
        return Asked(data.test.labels, held_out, students, teachers)
