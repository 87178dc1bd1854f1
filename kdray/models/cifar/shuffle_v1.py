"""ShuffleNet with three groups (Zhang et al., CVPR 2018), with a 1×1 stem for small pictures."""

import torch
from torch import nn

from ...specs import Layers
from .common import conv1x1, conv3x3, shuffle, spec

GROUPS, STEM, WIDTHS, BLOCKS = 3, 24, (240, 480, 960), (4, 8, 4)


class Block(nn.Module):
    """With stride 2 the pooled input is joined to the new channels, else the input is added to them."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        new = outputs - inputs if stride == 2 else outputs
        width = new // 4
        self.groups = 1 if inputs == STEM else GROUPS  # the stem's 24 channels are too few to be split
        self.conv1 = conv1x1(inputs, width, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(width, new, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(new)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x):
        out = shuffle(self.relu1(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        return self.relu3(out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], 1))


class ShuffleV1(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = conv1x1(in_channels, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(BLOCKS[0], STEM, WIDTHS[0])
        self.layer2 = _stage(BLOCKS[1], WIDTHS[0], WIDTHS[1])
        self.layer3 = _stage(BLOCKS[2], WIDTHS[1], WIDTHS[2])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


def _stage(blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, 2), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


MODELS = [
    spec(
        "ShuffleV1",
        ShuffleV1,
        Layers(
            head="linear",
            features=("relu", "layer1", "layer2", "layer3"),
            preactivations=("relu", *(f"layer{i + 1}.{n - 1}.relu3:input" for i, n in enumerate(BLOCKS))),
        ),
        "ShuffleNet, 3 groups",
    )
]
