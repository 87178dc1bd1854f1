"""The 22 networks of the distillation literature for 32×32 pictures, with published state-dict names.

Source of the architectures and names: RepDistiller (Tian et al., ICLR 2020). Every network ends in a global average,
so pictures of other sizes work. The feature maps are the published ones: the stem, then the end of each stage.
"""

from . import mobilenet, resnet, resnet50, shuffle_v1, shuffle_v2, vgg, wrn

MODELS = [
    *resnet.MODELS,
    *resnet50.MODELS,
    *wrn.MODELS,
    *vgg.MODELS,
    *mobilenet.MODELS,
    *shuffle_v1.MODELS,
    *shuffle_v2.MODELS,
]
