"""ShuffleNetV2 at full width (Ma et al., ECCV 2018), with a 1×1 stem for small pictures."""

import torch
from torch import nn

from ...specs import Layers
from .common import conv1x1, conv3x3, shuffle, spec

STEM, WIDTHS, LAST, BLOCKS = 24, (116, 232, 464), 1024, (3, 7, 3)


class Block(nn.Module):
    """Half of the channels pass, the other half is transformed, then both are shuffled."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x):
        kept, changed = x.chunk(2, dim=1)
        changed = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(changed)))))
        # The kept half has been through a ReLU already, so a ReLU over both changes neither values nor gradients,
        # and what goes into it is the published pre-activation: both halves, not yet shuffled.
        return shuffle(self.relu3(torch.cat([kept, self.bn3(self.conv3(changed))], 1)), 2)


class DownBlock(nn.Module):
    """Both branches see the whole input and halve its resolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        self.conv1 = conv3x3(inputs, inputs, stride=2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv1x1(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(self.relu(self.bn3(self.conv3(x)))))
        right = self.bn5(self.conv5(right))
        return shuffle(self.relu(torch.cat([left, right], 1)), 2)


class ShuffleV2(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = conv1x1(in_channels, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(BLOCKS[0], STEM, WIDTHS[0])
        self.layer2 = _stage(BLOCKS[1], WIDTHS[0], WIDTHS[1])
        self.layer3 = _stage(BLOCKS[2], WIDTHS[1], WIDTHS[2])
        self.conv2 = conv1x1(WIDTHS[2], LAST)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(LAST, num_classes)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.linear(self.avgpool(x).flatten(1))


def _stage(blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(inputs, outputs), *(Block(outputs) for _ in range(blocks)))


MODELS = [
    spec(
        "ShuffleV2",
        ShuffleV2,
        Layers(
            head="linear",
            features=("relu1", "layer1", "layer2", "layer3"),
            preactivations=("relu1", *(f"layer{i + 1}.{n}.relu3:input" for i, n in enumerate(BLOCKS))),
            last_map="relu2",
        ),
        "ShuffleNetV2, full width",
    )
]
