"""The parts of a run, one after the other: the first stages of its losses, then the main loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from ..distiller import Distiller, Stage
from ..errors import PluginError

if TYPE_CHECKING:
    from .objective import Objective


@dataclass(frozen=True)
class Phase:
    """A stage of the loss `label`, or the main loop: then both are absent."""

    label: str = ""
    stage: Stage | None = None

    @property
    def name(self) -> str:
        return f"{self.label}/{self.stage.name}" if self.stage else ""

    @property
    def trains_student(self) -> bool:
        return self.stage is None or self.stage.student

    def concerns(self, label: str) -> bool:
        return self.stage is None or self.label == label


def phases(distillers: list[tuple[str, Distiller]]) -> list[Phase]:
    """Raises PluginError where `stages()` returns something else than stages."""
    found: list[Phase] = []
    for label, distiller in distillers:
        for stage in distiller.stages():
            if not isinstance(stage, Stage) or stage.epochs < 1:
                raise PluginError(
                    f"loss '{label}' ({type(distiller).__name__}): stages() gave {stage!r}; expected kdray.Stage of at "
                    "least one epoch"
                )
            if any(phase.label == label and phase.stage.name == stage.name for phase in found):
                raise PluginError(f"loss '{label}' ({type(distiller).__name__}): two stages are called '{stage.name}'")
            found.append(Phase(label, stage))
    return [*found, Phase()]


class Trainable:
    """Which parameters train in which phase.

    The student's: in the main loop, and in stages that train it. A distiller's: in the main loop and in its own stages,
    but for the modules of a stage, which train there alone. What is frozen when the run begins stays frozen.
    """

    def __init__(self, objective: Objective, all_phases: list[Phase]):
        self.objective, self.phases = objective, all_phases
        self.free = {p for p in objective.parameters() if p.requires_grad}
        self.of_stage = {phase.name: _parameters(phase.stage.modules) for phase in all_phases if phase.stage}

    def begin(self, phase: Phase) -> list[nn.Parameter]:
        """Let the parameters of `phase` train, and no others; returns them in a fixed order."""
        chosen = set(self.objective.student.parameters()) if phase.trains_student else set()
        for label, distiller in self.objective.by_label():
            if phase.concerns(label):
                chosen |= set(distiller.parameters())
        for name, parameters in self.of_stage.items():
            if name != phase.name:
                chosen -= parameters - self.of_stage.get(phase.name, set())
        for parameter in self.free:
            parameter.requires_grad_(parameter in chosen)
        return [p for p in self.objective.parameters() if p in chosen and p in self.free]

    def set_modes(self, phase: Phase) -> None:
        """Training mode, but for the modules of other stages: their statistics stay as their stage left them."""
        self.objective.train()
        for other in sorted(self.phases, key=lambda other: other is phase):  # its own modules may be others' too
            for module in other.stage.modules if other.stage else ():
                module.train(other is phase)


def _parameters(modules) -> set[nn.Parameter]:
    return {p for module in modules for p in module.parameters()}
