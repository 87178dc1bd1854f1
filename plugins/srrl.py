"""Softmax regression representation learning: the student's embedding must please the teacher's classifier."""

import torch.nn.functional as F
from torch import nn

from kdray import Distiller, DistillerSpec, Published, Requires, hookimpl, last_maps


class SRRL(Distiller):
    """Two terms. `feature`: mean (h − h_t)² over the embedding's D_t entries. `regression`: mean (W h + b − z_t)² over
    the classes (Yang et al.).

    h: the student's last map brought to the teacher's channels by a 1×1 convolution, batch norm and ReLU, then averaged
    over its positions. h_t, z_t: the teacher's embedding and logits; W, b: its classifier, frozen.

    As in the authors' code the connector works on the map; other published code gives it the pooled embedding.
    """

    requires = Requires(student={"last_map"}, teacher={"embedding", "logits", "head"})
    paper = (
        "Yang, Martinez, Bulat, Tzimiropoulos: Knowledge Distillation via Softmax Regression Representation Learning. "
        "ICLR 2021"
    )
    published = Published(resnet8x4=75.39, source="SimKD README, with cross-entropy and KD")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        (shape_s,) = last_maps("srrl", student=setup.student)
        width_s, width_t = shape_s[0], setup.teacher.embedding[0]
        convolution = nn.Conv2d(width_s, width_t, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.connector = nn.Sequential(convolution, nn.BatchNorm2d(width_t), nn.ReLU())
        weight, bias = setup.teacher_head
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, student, teacher, batch, step):
        h = self.connector(student.last_map).mean(dim=(2, 3))
        return {
            "feature": F.mse_loss(h, teacher.embedding),
            "regression": F.mse_loss(F.linear(h, self.weight, self.bias), teacher.logits),
        }


@hookimpl
def kdray_distillers():
    return [DistillerSpec("srrl", SRRL)]
