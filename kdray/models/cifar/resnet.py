"""CIFAR ResNets of depth 6n + 2 (He et al., CVPR 2016), projections where a block changes shape. x4 is 4 × as wide."""

from functools import partial

from torch import nn

from ...specs import Layers
from .common import conv1x1, conv3x3, init_weights, spec


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """widths: channels of the stem and the three stages."""

    def __init__(self, depth: int, widths: tuple[int, ...], num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks, widths[0], widths[1], 1)
        self.layer2 = _stage(blocks, widths[1], widths[2], 2)
        self.layer3 = _stage(blocks, widths[2], widths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        init_weights(self)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _spec(name: str, depth: int, widths: tuple[int, ...]):
    last = (depth - 2) // 6 - 1
    layers = Layers(
        head="fc",
        features=("relu", "layer1", "layer2", "layer3"),
        preactivations=("relu", *(f"layer{stage}.{last}.relu2:input" for stage in (1, 2, 3))),
    )
    summary = f"CIFAR ResNet of depth {depth}, {widths[1]} to {widths[3]} channels"
    return spec(name, partial(ResNet, depth, widths), layers, summary)


MODELS = [
    *(_spec(f"resnet{depth}", depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)),
    *(_spec(f"resnet{depth}x4", depth, (32, 64, 128, 256)) for depth in (8, 32)),
]
