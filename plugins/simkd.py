"""SimKD: the student learns the teacher's last map through a projector and answers with the teacher's classifier."""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl, last_maps


class SimKDOptions(Options):
    factor: int = Field(2, ge=1, description="The projector's inner layers have D_t / factor channels.")


class SimKD(Distiller):
    """Mean over (D_t, H, W) of (P(S) − T)², where S and T are the last maps of student and teacher (Chen et al.).

    P, the projector: convolutions 1×1, 3×3, 1×1, each with batch norm and ReLU. Before it the larger of the two maps
    is pooled to the size of the smaller.

    What is evaluated and exported is the student without its classifier, then P, the average over the positions and the
    teacher's classifier. The student's own classifier gets nothing from this loss, and the paper uses no other: give
    `ce` the weight 0. P makes the student larger.
    """

    Options = SimKDOptions
    requires = Requires(student={"last_map"}, teacher={"last_map", "head"})
    paper = (
        "Chen, Mei, Zhang, Wang, Feng, Chen: Knowledge Distillation with the Reused Teacher Classifier. CVPR 2022, "
        "arXiv 2203.14001"
    )
    published = Published(resnet8x4=78.08, source="SimKD README, factor 2, with a larger student")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shape_s, shape_t = last_maps("simkd", student=setup.student, teacher=setup.teacher)
        width_s, width_t = shape_s[0], shape_t[0]
        inner = max(1, width_t // options.factor)
        self.size = tuple(min(s, t) for s, t in zip(shape_s[1:], shape_t[1:]))
        self.projector = nn.Sequential(
            nn.AdaptiveAvgPool2d(self.size),
            *convolution(width_s, inner, 1),
            *convolution(inner, inner, 3),
            *convolution(inner, width_t, 1),
        )
        weight, bias = setup.teacher_head
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, student, teacher, batch, step):
        return F.mse_loss(self.projector(student.last_map), F.adaptive_avg_pool2d(teacher.last_map, self.size))

    def deployed(self, student):
        return Reused(student, self.projector, self.weight, self.bias)


class Reused(nn.Module):
    """Pictures to the logits that the teacher's classifier gives for the student's projected map."""

    def __init__(self, student, projector, weight, bias):
        super().__init__()
        self.student, self.projector = student, projector
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x):
        embedding = self.projector(self.student(x).last_map).mean(dim=(2, 3))
        return F.linear(embedding, self.weight, self.bias)


def convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


@hookimpl
def kdray_distillers():
    return [DistillerSpec("simkd", SimKD)]
