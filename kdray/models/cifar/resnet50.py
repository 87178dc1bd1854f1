"""ResNet-50 for small pictures: the ImageNet network's bottlenecks behind a 3×3 stem that keeps the resolution."""

from torch import nn

from ...specs import Layers
from .common import conv1x1, conv3x3, init_weights, spec

BLOCKS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.relu3(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(BLOCKS[0], 64, 64, 1)
        self.layer2 = _stage(BLOCKS[1], 256, 128, 2)
        self.layer3 = _stage(BLOCKS[2], 512, 256, 2)
        self.layer4 = _stage(BLOCKS[3], 1024, 512, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2048, num_classes)
        init_weights(self)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.avgpool(x).flatten(1))


def _stage(blocks: int, inputs: int, width: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)


MODELS = [
    spec(
        "ResNet50",
        ResNet50,
        Layers(
            head="linear",
            features=("relu", "layer1", "layer2", "layer3", "layer4"),
            preactivations=("relu", *(f"layer{i + 1}.{n - 1}.relu3:input" for i, n in enumerate(BLOCKS))),
        ),
        "ResNet-50 with a 3×3 stem for small pictures",
    )
]
