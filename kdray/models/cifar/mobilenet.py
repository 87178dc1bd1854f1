"""MobileNetV2 at half width with expansion 6 (Sandler et al., CVPR 2018), as distillation papers train it on CIFAR.

Its blocks end linearly, so their outputs are feature maps and pre-activations at once.
"""

from torch import nn

from ...specs import Layers
from .common import conv1x1, conv3x3, init_weights, spec

# Expansion, channels, blocks, stride of the first block. The channels are half of the paper's.
STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
STEM, LAST = 16, 1280


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.identity = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_activated(conv1x1(inputs, width)),
            *_activated(conv3x3(width, width, stride, groups=width)),
            conv1x1(width, outputs),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        return x + self.conv(x) if self.identity else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = _activated(conv3x3(in_channels, STEM, stride=2))
        self.blocks = nn.Sequential()
        channels = STEM
        for expansion, width, count, stride in STAGES:
            first = InvertedResidual(channels, width, stride, expansion)
            rest = (InvertedResidual(width, width, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            channels = width
        self.conv2 = _activated(conv1x1(channels, LAST))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        init_weights(self, linear_std=0.01)

    def forward(self, x):
        x = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(self.avgpool(x).flatten(1))


def _activated(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


MAPS = ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6")

MODELS = [
    spec(
        "MobileNetV2",
        MobileNetV2,
        Layers(head="classifier.0", features=MAPS, preactivations=MAPS, last_map="conv2"),
        "MobileNetV2, half width, expansion 6",
    )
]
