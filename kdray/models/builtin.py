"""The networks that come with kdray, offered through the public hook."""

from ..hooks import hookimpl


@hookimpl
def kdray_models():
    # Here, not above: torch takes a second to import.
    from . import convnet, vision
    from .cifar import MODELS

    return [*MODELS, convnet.MODEL, *vision.specs()]
