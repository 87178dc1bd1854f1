"""`convnet`: a plain convolutional network as small as wanted, for small pictures and quick trials."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from pydantic import Field
from torch import nn

from ..options import Options
from ..specs import Layers, ModelSpec


class ConvNetOptions(Options):
    widths: list[Annotated[int, Field(gt=0)]] = Field(
        [16, 32], min_length=1, description="Channels of each stage; every stage after the first halves the resolution."
    )


class ConvNet(nn.Module):
    """A 3×3 convolution, batch norm and ReLU a stage, then a global average and one linear layer."""

    def __init__(self, widths: list[int], num_classes: int, in_channels: int):
        super().__init__()
        self.stages = nn.Sequential()
        for i, (inputs, outputs) in enumerate(zip([in_channels, *widths[:-1]], widths, strict=True)):
            self.stages.append(_stage(inputs, outputs, stride=2 if i else 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        stages = tuple(f"stages.{i}" for i in range(len(widths)))
        before = tuple(f"{stage}.relu:input" for stage in stages)
        self.kdray_layers = Layers("fc", features=stages, preactivations=before)

    def forward(self, x):
        return self.fc(self.avgpool(self.stages(x)).flatten(1))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True)))


def build(*, num_classes: int, in_channels: int, weights: str | None, options: ConvNetOptions) -> ConvNet:
    return ConvNet(options.widths, num_classes, in_channels)


MODEL = ModelSpec("convnet", build, Options=ConvNetOptions, summary="Plain convolutional network of the given widths")
