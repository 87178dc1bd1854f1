"""Cross-entropy with the labels, also with label smoothing: what the student learns without a teacher."""

from functools import partial

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class CEOptions(Options):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes.")


class CE(Distiller):
    """−log p_s(y), mean over the batch; of a picture mixed of two, −λ log p_s(y_i) − (1 − λ) log p_s(y_j)."""

    Options = CEOptions
    requires = Requires(student={"logits"})
    mixes = True
    recordable = True

    def forward(self, student, teacher, batch, step):
        ce = partial(F.cross_entropy, student.logits, label_smoothing=self.options.label_smoothing)
        if batch.share is None:
            return ce(batch.target)
        own, other = (ce(y, reduction="none") for y in (batch.target, batch.partner))
        return (batch.share * own + (1 - batch.share) * other).mean()


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ce", CE)]
