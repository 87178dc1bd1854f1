"""All teachers of a run, and what each loss sees of them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ..distiller import Outputs
from .live import LiveTeacher

AVERAGE = "average"


class Teachers:
    """`of_loss` maps the label of every loss to the name of its teacher, `average`, or None."""

    def __init__(self, networks: dict[str, LiveTeacher], of_loss: dict[str, str | None]):
        self.networks, self.of_loss = networks, of_loss

    def __call__(
        self, pictures: Tensor, views: dict[str, Tensor], labels: Collection[str] | None = None
    ) -> dict[str, Outputs]:
        """Outputs by label for the losses `labels` (None: all), each network run once. views: further pictures."""
        asked = {label: name for label, name in self.of_loss.items() if labels is None or label in labels}
        names = self.networks if AVERAGE in asked.values() else {name for name in asked.values() if name}
        seen = {name: self.networks[name](pictures) for name in self.networks if name in names}
        for name, outputs in seen.items():
            outputs.views = {view: self.networks[name](x) for view, x in views.items()}
        if AVERAGE in asked.values():
            seen[AVERAGE] = average(list(seen.values()))
        return {label: seen[name] if name else Outputs() for label, name in asked.items()}

    def logits(self, name: str, pictures: Tensor) -> Tensor:
        """What one teacher, or their average, answers."""
        if name != AVERAGE:
            return self.networks[name](pictures).logits
        return average([network(pictures) for network in self.networks.values()]).logits


def average(outputs: list[Outputs]) -> Outputs:
    """The mean of the logits: the normalised geometric mean of the predictions, at every temperature."""
    return Outputs(
        logits=torch.stack([o.logits for o in outputs]).mean(dim=0),
        views={name: average([o.views[name] for o in outputs]) for name in outputs[0].views},
    )
