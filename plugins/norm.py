"""NORM: N groups of channels, each as wide as the teacher's map, all learn it; a linear module puts them back."""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, hookimpl, last_maps


class NORMOptions(Options):
    copies: int = Field(8, ge=1, description="N: how many times the student's last map is as wide as the teacher's.")
    alpha: float = Field(1.0, ge=0, description="Weight of `match`.")
    gamma: float = Field(1.0, ge=0, description="Weight of `target`.")
    scale: float = Field(
        2.5,
        ge=0,
        description="Logits get mean 0 and this standard deviation before the cross-entropy, as in the authors' code; "
        "0: they stay as they are.",
    )


class NORM(Distiller):
    """α Σ_n mean (f_n − t)² + γ CE(z, y), terms `match` and `target` (Liu et al.).

    A module at the end of the student: f = E(x) widens the last map x to N · D_t channels, x + R(f) goes on to the
    pooling and the classifier, which says z. E and R are 1×1 convolutions with batch norm, f_1 … f_N the groups of D_t
    channels, t the teacher's last map. The larger of f and t is max-pooled to the size of the smaller.

    The answer of the student with the module is what counts, so the cross-entropy is in here: give `ce` the weight 0.
    Other losses see the student's answer without the module. What is evaluated and exported contains it; after the
    training it is linear and acts on the pooled vector, so that it costs next to nothing.
    """

    Options = NORMOptions
    requires = Requires(student={"last_map", "head"}, teacher={"last_map"})
    paper = (
        "Liu, Li, Li, Yao: NORM: Knowledge Distillation via N-to-One Representation Matching. ICLR 2023, "
        "arXiv 2305.13803"
    )
    published = Published(resnet8x4=76.49, wrn_16_2=75.65, source="NORM README")
    scheduled = frozenset({"alpha", "gamma", "scale"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shape_s, shape_t = last_maps("norm", student=setup.student, teacher=setup.teacher)
        wide = options.copies * shape_t[0]
        self.size = tuple(min(s, t) for s, t in zip(shape_s[1:], shape_t[1:]))
        self.expand = convolution(shape_s[0], wide)
        self.reduce = convolution(wide, shape_s[0])

    def forward(self, student, teacher, batch, step):
        x, alpha, gamma = student.last_map, self.options.alpha, self.options.gamma
        f = self.expand(x)
        z = F.linear((x + self.reduce(f)).mean(dim=(2, 3)), *student.head)
        groups = F.adaptive_max_pool2d(f, self.size).unflatten(1, (self.options.copies, -1))
        t = F.adaptive_max_pool2d(teacher.last_map, self.size)
        return {
            "match": alpha * ((groups - t[:, None]) ** 2).mean(dim=(0, 2, 3, 4)).sum(),
            "target": gamma * F.cross_entropy(self.standardised(z), batch.target),
        }

    def standardised(self, z):
        scale = self.options.scale
        return scale * F.layer_norm(z, z.shape[1:], eps=1e-7) if scale else z

    def deployed(self, student):
        return Extended(student, self.expand, self.reduce)


class Extended(nn.Module):
    """Pictures to the logits of the student with the module. In evaluation the module is linear: pooling goes first."""

    def __init__(self, student, expand, reduce):
        super().__init__()
        self.student, self.expand, self.reduce = student, expand, reduce

    def forward(self, pictures):
        outputs = self.student(pictures)
        x = outputs.last_map.mean(dim=(2, 3), keepdim=True)
        return F.linear((x + self.reduce(self.expand(x))).flatten(1), *outputs.head)


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


@hookimpl
def kdray_distillers():
    return [DistillerSpec("norm", NORM)]
