"""Wide residual networks wrn_DEPTH_WIDTH (Zagoruyko and Komodakis, BMVC 2016): activation before convolution.

The published feature maps are the raw sums at the end of each stage; their "pre-activations" are one batch norm later,
in front of the next stage's first ReLU.
"""

from functools import partial

from torch import nn

from ...specs import Layers
from .common import conv1x1, conv3x3, init_weights, spec


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = conv1x1(inputs, outputs, stride) if inputs != outputs else None

    def forward(self, x):
        active = self.relu1(self.bn1(x))
        # A projection sees the activated input, the identity the raw one.
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(self.relu2(self.bn2(self.conv1(active))))


class Stage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1))
        )

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = Stage(blocks, 16, 16 * width, 1)
        self.block2 = Stage(blocks, 16 * width, 32 * width, 2)
        self.block3 = Stage(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        init_weights(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        return self.fc(self.avgpool(x).flatten(1))


LAYERS = Layers(
    head="fc",
    features=("conv1", "block1", "block2", "block3"),
    preactivations=("conv1", "block2.layer.0.relu1:input", "block3.layer.0.relu1:input", "relu:input"),
    last_map="relu",
)

MODELS = [
    spec(f"wrn_{depth}_{width}", partial(WideResNet, depth, width), LAYERS, f"Wide ResNet-{depth}-{width}")
    for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2))
]
