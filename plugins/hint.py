"""Hints (FitNet, FitNets): a regressor on one of the student's maps predicts the teacher's map."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import (
    ConfigError,
    Distiller,
    DistillerSpec,
    Options,
    Published,
    Requires,
    SearchSpaceSpec,
    Stage,
    hookimpl,
    map_connector,
    paired_maps,
)


class HintOptions(Options):
    layer: int = Field(2, description="Which map: 0 is the stem's, −1 the last; the same place in both networks.")
    regressor: Literal["conv_bn_relu", "conv_relu", "none"] = Field(
        "conv_bn_relu",
        description="r: `conv_bn_relu` as in RepDistiller, `conv_relu` as in the paper, `none` for maps of one shape.",
    )
    init_epochs: int = Field(
        0,
        ge=0,
        description="Epochs of a first stage that trains the student up to the map, and r, on the hint alone; the main "
        "loop then has no hint, as in the paper. 0: the hint is trained jointly with the other losses.",
    )


class Hint(Distiller):
    """mean((r(f_s) − f_t)²) over samples, channels and positions.

    The paper trains in two stages and writes ½‖·‖² (equation 3); RepDistiller trains jointly with this mean. Both
    are here: see `init_epochs`.
    """

    Options = HintOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets. ICLR 2015"
    published = Published(resnet8x4=73.50, wrn_16_2=73.58, source="RepDistiller README, last epoch, 5 runs")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        (self.layer,) = paired_maps("hint", setup, "features", [options.layer])
        shapes = (side.features[self.layer] for side in (setup.student, setup.teacher))
        self.regressor = regressor(options.regressor, *shapes)

    def hint(self, student, teacher, batch, step):
        return F.mse_loss(self.regressor(student.features[self.layer]), teacher.features[self.layer])

    def stages(self):
        epochs = self.options.init_epochs
        return [Stage("hint", epochs, self.hint, student=True, modules=(self.regressor,))] if epochs else []

    def forward(self, student, teacher, batch, step):
        return {} if self.options.init_epochs else self.hint(student, teacher, batch, step)


def regressor(kind, shape_s, shape_t):
    """From maps of shape_s = (C, H, W) to maps of shape_t."""
    if kind == "none":
        if shape_s != shape_t:
            raise ConfigError(
                f"hint: regressor 'none' needs maps of one shape; the student's is {shape_s}, the teacher's {shape_t}. "
                "Take another `regressor` or `layer`."
            )
        return nn.Identity()
    conv = map_connector("hint", shape_s, shape_t)
    return nn.Sequential(conv, *([nn.BatchNorm2d(shape_t[0])] if kind == "conv_bn_relu" else []), nn.ReLU())


@hookimpl
def kdray_distillers():
    return [DistillerSpec("hint", Hint)]


@hookimpl
def kdray_search_spaces():
    return [SearchSpaceSpec("hint", {"weight": {"loguniform": [10.0, 1000.0]}})]
