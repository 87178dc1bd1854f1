"""All that trains, in one module: the student and the losses with their heads. DistributedDataParallel wraps just
this."""

from __future__ import annotations

from torch import Tensor, nn

from ..distiller import Batch, Distiller, Outputs, Step
from ..errors import PluginError
from ..models.taps import Tapped
from .precision import Precision


class Objective(nn.Module):
    """Normalised pictures (b, C, H, W) and the teacher's outputs to the unweighted terms, by `label` or
    `label/term`."""

    def __init__(self, student: Tapped, distillers: dict[str, Distiller], precision: Precision):
        super().__init__()
        self.student = student
        self.labels = list(distillers)
        self.distillers = nn.ModuleList(distillers.values())
        self.precision = precision

    def by_label(self) -> list[tuple[str, Distiller]]:
        return list(zip(self.labels, self.distillers))

    def forward(self, x: Tensor, teacher: Outputs, batch: Batch, step: Step) -> dict[str, Tensor]:
        outputs = self.precision.run(self.student, x)
        terms = {}
        for label, distiller in self.by_label():
            result = distiller(outputs, teacher, batch, step)
            for name, term in (result if isinstance(result, dict) else {"": result}).items():
                if not isinstance(term, Tensor) or term.dim() != 0:
                    what = (
                        f"a tensor of shape {tuple(term.shape)}"
                        if isinstance(term, Tensor)
                        else f"a {type(term).__name__}"
                    )
                    raise PluginError(
                        f"loss '{label}' ({type(distiller).__name__}) returned {what}; a term is a scalar tensor"
                    )
                terms[f"{label}/{name}" if name else label] = term
        return terms

    def state_of_distillers(self) -> dict[str, Tensor]:
        return {f"{label}.{k}": v for label, d in self.by_label() for k, v in d.state_dict().items()}

    def load_state_of_distillers(self, state: dict[str, Tensor]) -> None:
        for label, distiller in self.by_label():
            start = f"{label}."
            distiller.load_state_dict({k[len(start) :]: v for k, v in state.items() if k.startswith(start)})
