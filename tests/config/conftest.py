"""A registry of small plugins, made without loading any."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from kdray.config.load import load_config
from kdray.distiller import Requires
from kdray.errors import ConfigError
from kdray.loader import Host, PluginInfo
from kdray.options import Options
from kdray.registry import Registry
from kdray.specs import AugmentationSpec, DatasetSpec, DistillerSpec, ModelSpec, OptimizerSpec, TrackerSpec


class Bank(Options):
    kind: Literal["bank"] = Field("bank", description="A memory.")
    count: int = Field(16384, gt=0, description="How many.")


class Queue(Options):
    kind: Literal["queue"] = Field("queue", description="The last ones.")
    length: int = Field(64, gt=0, description="How long.")


class CE:
    """Cross-entropy."""

    Options, requires = Options, Requires(student={"logits"})


class KD:
    """Softened logits."""

    requires = Requires(student={"logits"}, teacher={"logits"})

    class Options(Options):
        temperature: float = Field(4.0, gt=0, description="Softening.")


class CRD:
    """Contrast."""

    paper = "Tian et al., ICLR 2020."
    requires = Requires(student={"embedding"}, teacher={"embedding"})

    class Options(Options):
        dim: int = Field(128, gt=0, description="Width of the embedding.")
        temperature: float = Field(0.07, gt=0, description="Of the softmax.")
        negatives: Annotated[Bank | Queue, Field(discriminator="kind")] = Bank()
        stages: tuple[int, ...] = (1, 2)
        note: str | None = None


class Maps:
    """Maps of two views."""

    Options, requires = Options, Requires(student={"features"}, teacher={"features"}, views=("strong",))


class Crop:
    class Options(Options):
        padding: int = Field(4, ge=0, description="Pixels.")


class Flip:
    class Options(Options):
        p: float = Field(0.5, ge=0, le=1, description="Probability.")


class Parquet(Options):
    image: str = Field("image", description="Column of the pictures.")


class SGD(Options):
    lr: float = Field(gt=0, description="Base rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")


class Adam(Options):
    lr: float = Field(gt=0, description="Base rate.")
    eps: float = Field(1e-8, gt=0, description="Added.")


class ConvNet(Options):
    widths: list[int] = Field([8, 16], description="Channels of the stages.")


class Server(Options):
    uri: str = Field("here", description="Where it listens.")


SPECS = {
    "distillers": [
        DistillerSpec("ce", CE),
        DistillerSpec("kd", KD),
        DistillerSpec("crd", CRD, "Contrast."),
        DistillerSpec("maps", Maps),
    ],
    "models": [
        ModelSpec("wrn_40_2", None),
        ModelSpec("wrn_16_2", None),
        ModelSpec("convnet", None, Options=ConvNet),
        ModelSpec("torchvision/resnet18", None, weights=("IMAGENET1K_V1",)),
    ],
    "datasets": [DatasetSpec("digits", None), DatasetSpec("parquet", None, Options=Parquet)],
    "augmentations": [AugmentationSpec("crop", Crop), AugmentationSpec("flip", Flip)],
    "optimizers": [OptimizerSpec("sgd", None, SGD), OptimizerSpec("adamw", None, Adam)],
    "trackers": [TrackerSpec("tensorboard", None), TrackerSpec("server", None, Server)],
}

VALID = """\
name: test
data: {name: digits, batch_size: 64, augment: [crop, flip]}
teacher:
  model: wrn_40_2
  train: teachers/wrn.yaml
student: {model: wrn_16_2}
losses:
  ce: {weight: 1.0}
  kd: {weight: 1.0, temperature: 4.0}
  crd:
    weight: 0.8
    dim: 128
optimizer: {name: sgd, lr: 0.05}
schedule: {epochs: 240, name: multistep, milestones: [150, 180], gamma: 0.1}
"""


@pytest.fixture(scope="session")
def registry():
    specs = {kind: {spec.name: spec for spec in of_kind} for kind, of_kind in SPECS.items()}
    return Registry(Host(None, [], [PluginInfo("test", specs=specs)]))


@pytest.fixture
def valid():
    return VALID


@pytest.fixture
def load(tmp_path, monkeypatch, registry):
    """load(text, *overrides): a Loaded of a file `c.yaml` in the current directory."""
    monkeypatch.chdir(tmp_path)

    def load(text=VALID, *overrides):
        (tmp_path / "c.yaml").write_text(text)
        return load_config("c.yaml", overrides, registry)

    return load


@pytest.fixture
def errors(load):
    """errors(text, *overrides): the lines of the ConfigError."""

    def errors(text=VALID, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).splitlines()

    return errors
