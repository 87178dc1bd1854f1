"""VGG with batch norm and one linear layer (Simonyan and Zisserman, ICLR 2015): five blocks, pooling between them."""

from functools import partial

from torch import nn

from ...specs import Layers
from .common import init_weights, spec

# Convolutions in each of the five blocks, and their channels.
DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    def __init__(self, depth: int, num_classes: int, in_channels: int):
        super().__init__()
        channels = in_channels
        for i, (convolutions, width) in enumerate(zip(DEPTHS[depth], WIDTHS, strict=True)):
            self.add_module(f"block{i}", _block(convolutions, channels, width))
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
            channels = width
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self, linear_std=0.01)

    def forward(self, x):
        # As published: the fourth block is pooled for 64×64 pictures only; 32×32 ones keep 4×4 maps to the end.
        pooled = (0, 1, 2, 3) if x.shape[-2] == 64 else (0, 1, 2)
        for i in range(len(WIDTHS)):
            x = self.get_submodule(f"relu{i}")(self.get_submodule(f"block{i}")(x))
            if i in pooled:
                x = self.pool(x)
        return self.classifier(self.avgpool(x).flatten(1))


def _block(convolutions: int, inputs: int, width: int) -> nn.Sequential:
    """Convolution and batch norm, repeated with ReLUs between; the last ReLU stands outside, so it can be tapped."""
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [nn.ReLU(inplace=True)] if i else []
        layers += [nn.Conv2d(inputs if i == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers)


LAYERS = Layers(
    head="classifier",
    features=tuple(f"relu{i}" for i in range(5)),
    preactivations=("relu0", *(f"relu{i}:input" for i in range(1, 5))),
)

MODELS = [spec(f"vgg{depth}", partial(VGG, depth), LAYERS, f"VGG-{depth} with batch norm") for depth in DEPTHS]
