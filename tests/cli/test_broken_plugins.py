"""A plugin that breaks when it is used: one line says what of it, why and where, exit 3, and nothing is written."""

import pytest

PLUGIN = """
from pydantic import Field
from torch import nn
from kdray import *

class Options(Options):
    lr: float = Field(description="Rate.")

def load(options, path, split):
    return {"the": "sky"}["fell"]

def build(**_):
    return nn.Linear(-1, "x")

class Loss(Distiller):
    def __init__(self, options, setup):
        super().__init__(options, setup)
        setup.teacher.logits

    def forward(self, student, teacher, batch, step):
        return student.logits.mean()

class Crack(Augmentation):
    def __init__(self, options):
        raise OSError("cracked")

class Tear(Augmentation):
    def __call__(self, images, u):
        return images @ images.float()

class Silent(Source):
    def __init__(self):
        pass

@hookimpl
def kdray_datasets():
    return [DatasetSpec("sky", load), DatasetSpec("silent", lambda *_: Silent())]

@hookimpl
def kdray_models():
    return [ModelSpec("sky", build), ModelSpec("nothing", lambda **_: None)]

@hookimpl
def kdray_distillers():
    return [DistillerSpec("sky", Loss)]

@hookimpl
def kdray_augmentations():
    return [AugmentationSpec("crack", Crack), AugmentationSpec("tear", Tear)]

@hookimpl
def kdray_optimizers():
    return [OptimizerSpec("sky", lambda parameters, options: options.no_such_option, Options)]
"""
FAULTS = {
    "data.name=sky": ("data: the data set sky could not be loaded: KeyError: 'fell'", 'return {"the"'),
    "data.name=silent": ("data: the data set silent could not be loaded: AttributeError: 'Silent' object has no", ""),
    "data.augment=[crack]": ("data: the augmentation crack could not be built: OSError: cracked", "raise OSError"),
    "data.augment=[tear]": ("data: the augmentation tear failed on (2, 1, 8, 8): RuntimeError: ", "return images @"),
    "student.model=sky": ("model sky could not be built: TypeError: ", "return nn.Linear"),
    "student.model=nothing": ("model nothing: build() returned a NoneType, not an nn.Module", ""),
    "losses.sky={}": ("losses.sky: Loss could not be built: AttributeError: 'NoneType' object", "setup.teacher.logits"),
    "optimizer.name=sky": (
        "optimizer sky could not be built: AttributeError: 'Options' object",
        "options.no_such_option",
    ),
}
"""By override of a config, how the message begins, and the line of the plugin that it names."""


@pytest.mark.parametrize("override", FAULTS)
def test_the_thing_of_the_plugin_is_named(desk, override):
    desk.write("mine.py", PLUGIN)
    desk.write("kdray.toml", '[plugins]\nload = ["mine.py"]\n')
    config = desk.config(student={"model": "convnet"})
    (message,) = desk.refused("train", config, override, code=3).splitlines()
    begins, text = FAULTS[override]
    assert message.startswith(f"error: {begins}")
    if text:
        (line,) = (number for number, line in enumerate(PLUGIN.splitlines(), 1) if text in line)
        assert message.endswith(f" ({desk.path / 'mine.py'}:{line})")


def test_a_plugin_that_does_not_load_may_have_the_name(desk):
    desk.write("p.py", "import no_such_module")
    desk.write("kdray.toml", '[plugins]\nload = ["p.py"]\n')
    why = f"No module named 'no_such_module' ({desk.path / 'p.py'}:1)"
    assert why in desk.refused("train", desk.config(losses={"mine": {}}), code=3)
    assert why in desk.refused("plugins", "check", "mine", code=3)


def test_a_network_of_ones_own_that_cannot_run(desk):
    net = "net = lambda: Net()\nclass Net(nn.Module):\n    def forward(self, x):\n        return {}['logits']\n"
    desk.write("nets_without_keys.py", f"from torch import nn\n{net}")
    message = desk.refused("train", desk.config(student={"model": "nets_without_keys:net"}))
    assert "student nets_without_keys:net cannot take pictures of 1×8×8" in message
    assert f"KeyError: 'logits' ({desk.path / 'nets_without_keys.py'}:5)" in message


STEP = """
from kdray import *

class Loss(Distiller):
    def forward(self, student, teacher, batch, step):
        FORWARD
        return student.logits.mean()

    def after_backward(self, batch, step):
        AFTER

@hookimpl
def kdray_distillers():
    return [DistillerSpec("mine", Loss)]
"""


def trained_with(desk, **lines):
    text = STEP
    for place in ("forward", "after"):
        text = text.replace(place.upper(), lines.get(place, "pass"))
    desk.write("step.py", text)
    desk.write("kdray.toml", '[plugins]\nload = ["step.py"]\n')
    return desk("train", desk.config(losses={"ce": {}, "mine": {}}))


@pytest.mark.parametrize("place", ["forward", "after"])
def test_a_loss_that_raises_in_a_step(desk, place):
    result = trained_with(desk, **{place: "if step.number: return {}['key']"})
    assert result.code == 3
    assert "error: loss 'mine' (Loss) failed at step 1:\n" in result.err
    assert 'step.py", line' in result.err and result.err.splitlines()[-1] == "KeyError: 'key'"


def test_what_is_not_the_fault_of_a_loss(desk):
    """A lack of memory; and what is raised further in, where only another worker may be lost."""
    assert trained_with(desk, forward="raise MemoryError").code == 1
    desk.path.joinpath("runs/small").rename(desk.path / "runs" / "first")
    result = trained_with(desk, forward="step.gather(None)")
    assert result.code == 1 and "raised by loss 'mine' (Loss)" in result.err


def test_the_kit_says_once_what_is_wrong_everywhere(desk):
    desk.write("step.py", STEP.replace("FORWARD", "return student.logits").replace("AFTER", "pass"))
    desk.write("kdray.toml", '[plugins]\nload = ["step.py"]\n')
    result = desk("plugins", "check", "mine")
    assert result.code == 3 and result.out.count("Loss returned a tensor of shape") == 1
    assert result.out.count("as in fits") > 5 and result.err.count("mine") == 1
