"""All that trains, in one module: the student and the losses with their heads. DistributedDataParallel wraps just
this."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from torch import Tensor, nn

from ..blame import in_plugin, may_be_blamed, tail
from ..distiller import Batch, Distiller, Outputs, Step
from ..errors import ConfigError, PluginError
from ..models.taps import Tapped
from .beside import Beside
from .labels import batch_for
from .phases import Phase
from .precision import Precision


class Objective(nn.Module):
    """Normalised pictures (b, C, H, W) and the teachers' outputs, by loss, to the unweighted terms, by `label` or
    `label/term`. A loss without outputs of a teacher gets empty ones."""

    def __init__(self, student: Tapped, distillers: dict[str, Distiller], precision: Precision):
        super().__init__()
        self.student = student
        self.labels = list(distillers)
        self.distillers = nn.ModuleList(distillers.values())
        self.precision = precision
        self.phase = Phase()
        self.beside = Beside()

    def by_label(self) -> list[tuple[str, Distiller]]:
        return list(zip(self.labels, self.distillers))

    def forward(
        self, x: Tensor, views: dict[str, Tensor], teachers: dict[str, Outputs], batch: Batch, step: Step
    ) -> dict[str, Tensor]:
        concerned = [(label, distiller) for label, distiller in self.by_label() if self.phase.concerns(label)]
        heard = {label: teachers.get(label, Outputs()) for label, _ in concerned}
        seen = {label: batch_for(label, distiller, batch) for label, distiller in concerned}
        if self.phase.stage is None:
            with self.beside.fork():
                for label, distiller in concerned:
                    with naming(label, distiller, self.phase, step):
                        distiller.prepared = distiller.prepare(heard[label], seen[label], step)
        outputs = Outputs()
        if self.phase.trains_student:
            outputs = self.precision.run(self.student, x)
            outputs.views = {name: self.precision.run(self.student, view) for name, view in views.items()}
        self.beside.join()
        terms = {}
        for label, distiller in concerned:
            loss = self.phase.stage.loss if self.phase.stage else distiller
            with naming(label, distiller, self.phase, step):
                found = _named(loss(outputs, heard[label], seen[label], step))
                distiller.prepared = None
            for name, term in found.items():
                _check(label, distiller, term)
                terms[f"{label}/{name}" if name else label] = term
        return terms

    def deployed(self) -> nn.Module:
        """The network to evaluate and export: the student, or what a loss makes of it."""
        found = {label: network for label, d in self.by_label() if (network := d.deployed(self.student)) is not None}
        if len(found) > 1:
            raise ConfigError(
                f"{' and '.join(found)}: each of these losses gives the student another head, and it can have one. "
                "Remove all but one of them from `losses:`."
            )
        return next(iter(found.values()), self.student.model)

    def state_of_distillers(self) -> dict[str, Tensor]:
        return {f"{label}.{k}": v for label, d in self.by_label() for k, v in d.state_dict().items()}

    def load_state_of_distillers(self, state: dict[str, Tensor]) -> None:
        for label, distiller in self.by_label():
            start = f"{label}."
            distiller.load_state_dict({k[len(start) :]: v for k, v in state.items() if k.startswith(start)})


@contextlib.contextmanager
def naming(label: str, distiller: Distiller, phase: Phase, step: Step) -> Iterator[None]:
    """For calls into a loss: what its own code raises becomes a PluginError with the end of the traceback; what is
    raised further in, as by a lost worker in a gather, keeps its type. Both name the loss."""
    try:
        yield
    except Exception as error:
        whose = f"loss '{label}' ({type(distiller).__name__})"
        stage = f", in its stage '{phase.stage.name}'" if phase.stage else ""
        if may_be_blamed(error) and in_plugin(error):
            worker = f", on worker {step.rank}" if step.world_size > 1 else ""
            text = tail("".join(traceback.format_exception(error)))
            raise PluginError(f"{whose} failed at step {step.number}{stage}{worker}:\n{text}") from error
        error.add_note(f"raised by {whose}{stage}")
        raise


def _named(result: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return result if isinstance(result, dict) else {"": result}


def _check(label: str, distiller: Distiller, term) -> None:
    if not isinstance(term, Tensor) or term.dim() != 0:
        is_tensor = isinstance(term, Tensor)
        what = f"a tensor of shape {tuple(term.shape)}" if is_tensor else f"a {type(term).__name__}"
        raise PluginError(f"loss '{label}' ({type(distiller).__name__}) returned {what}; a term is a scalar tensor")
