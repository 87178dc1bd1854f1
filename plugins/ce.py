"""Cross-entropy with the labels: what the student learns without a teacher."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl


class CEOptions(Options):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes.")


class CE(Distiller):
    """−log p_s(y), mean over the batch."""

    Options = CEOptions
    requires = Requires(student={"logits"})

    def forward(self, student, teacher, batch, step):
        return F.cross_entropy(student.logits, batch.target, label_smoothing=self.options.label_smoothing)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ce", CE)]
