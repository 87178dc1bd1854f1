"""How much of what a network has learned serves other pictures: a linear classifier on its frozen embedding.

The transfer experiment of CRD (Tian et al., ICLR 2020, table 4): the network of a run stays as it is, batch statistics
included, the pictures of another data set are brought to the size it was trained on, and a linear layer learns their
classes from what goes into the network's own classifier.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from ..config.dump import write
from ..config.load import load_text
from ..config.schema import Config, DataConfig
from ..config.yaml import read
from ..data.augment import Augmentation, Pipeline
from ..data.build import Data, Split, load_data
from ..data.feed import Feed
from ..engine.evaluate import together
from ..errors import ConfigError
from ..launch.measure import Rebuilt, rebuild
from ..models.taps import Tapped
from ..models.taps import probe as shapes_of
from ..options import Options
from ..registry import Registry
from .finished import Finished
from .networks import Networks

READ = {"path", "samples", "evaluate", "threads"}
"""Keys of a config's section data, beside the data set's own, that mean something for a probe."""
ITERATIONS = 2000
"""Most of L-BFGS, which usually needs some hundred."""
EPOCHS, BATCH_SIZE, LR = 100, 128, 0.1
"""Of SGD: momentum 0.9, no weight decay, the learning rate falls to a tenth after 60 and 80 % of the epochs."""

Fit = Literal["lbfgs", "sgd"]


class Embeddings(NamedTuple):
    """x (N, D) fp32, y (N,) int64, on the CPU."""

    x: Tensor
    y: Tensor


class Fitted(Augmentation):
    """Covers height × width, of which the middle is taken."""

    def __init__(self, size: tuple[int, int]):
        super().__init__(Options())
        self.size = size

    def __call__(self, images, u):
        (height, width), (wanted_height, wanted_width) = images.shape[-2:], self.size
        scale = max(wanted_height / height, wanted_width / width)
        size = [max(wanted_height, round(height * scale)), max(wanted_width, round(width * scale))]
        return TF.center_crop(TF.resize(images, size, antialias=True), list(self.size))


def transfer(
    of: Finished,
    name: str,
    given: list[str],
    fit: Fit,
    best: bool,
    with_teachers: bool,
    seed: int,
    networks: Networks,
) -> dict:
    """Accuracies of linear probes on the data set `name`. given: KEY=VALUE of its section. networks: by which the
    run's own are rebuilt.

    Raises ConfigError where the pictures have other channels, or a network's classifier has no input to be read.
    """
    own = networks.data(of)
    config = _config(of.config, name, given, own, networks.registry)
    data = load_data(config.data, seed, networks.registry, networks.data_root)
    if data.channels != own.channels:
        raise ConfigError(
            f"the pictures of {name} have {data.channels} channels, and {of.run.name} was trained on {own.channels}: "
            f"the data sets folder and parquet take channels={own.channels}"
        )
    weights = {"student": of.run.weights(best)}
    if with_teachers:
        if not of.config.all_teachers:
            raise ConfigError(f"{of.run.name} has learned from no teacher: leave --teacher out")
        weights |= {role: of.teacher_weights(role) for role in of.config.all_teachers}
    size = _size(own, networks.device)
    pipeline = Pipeline([*data.evaluate.steps, ("fit", Fitted(size))], seed)
    found = {}
    for role, file in weights.items():
        network, ask = _network(of.config, file, role, own, networks, size)
        train, test = (_embed(network, ask, split, pipeline, config, networks) for split in (data.train, data.test))
        found[role] = {"weights": str(file), "embedding": train.x.shape[1], **accuracies(train, test, fit, seed)}
    return {
        "run": of.run.name,
        "data": name,
        "classes": data.num_classes,
        "train": len(data.train),
        "test": len(data.test),
        "input": [own.channels, *size],
        "fit": fit,
        "networks": found,
    }


def accuracies(train: Embeddings, test: Embeddings, fit: Fit, seed: int) -> dict:
    """Shares of the training and the test pictures that the probe names right, as `train` and `test`; for L-BFGS
    `converged`. Raises ConfigError where an embedding is no finite number."""
    mean, std = train.x.mean(0), train.x.std(0, unbiased=False)
    # A linear layer can do the same with and without this; how fast it is found should not depend on the scale.
    scale = torch.where(std > 0, 1 / std.clamp(min=1e-12), 0.0)
    train, test = (Embeddings((one.x - mean) * scale, one.y) for one in (train, test))
    if not (train.x.isfinite().all() and test.x.isfinite().all()):
        raise ConfigError("some embeddings are no finite numbers: the network is of no use")
    says, notes = (_lbfgs if fit == "lbfgs" else _sgd)(train, seed)
    shares = {side: float((says(one.x) == one.y).float().mean()) for side, one in (("train", train), ("test", test))}
    return {**shares, **notes}


def _lbfgs(train: Embeddings, seed: int):
    """Multinomial logistic regression, L2 with C = 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train.x.numpy(), train.y.numpy())
    return lambda x: torch.from_numpy(model.predict(x.numpy())), {"converged": int(max(model.n_iter_)) < ITERATIONS}


def _sgd(train: Embeddings, seed: int):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(train.x.shape[1], int(train.y.max()) + 1)
    nn.init.normal_(layer.weight, std=0.01, generator=generator), nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [EPOCHS * 6 // 10, EPOCHS * 8 // 10])
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train.y), generator=generator).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(layer(train.x[chosen]), train.y[chosen]).backward()
            optimizer.step()
        schedule.step()
    layer.requires_grad_(False)
    return lambda x: layer(x).argmax(1), {}


def _config(run: Config, name: str, given: list[str], own: Data, registry: Registry) -> Config:
    """A config whose section data is the probe's; the rest is there because a config has it."""
    body = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{text}' is not an option of the data set: write path=/data/pictures, or samples=500")
        if key in DataConfig.model_fields.keys() - READ:
            raise ConfigError(
                f"'{text}': a probe does not read {key}; of the section data it takes {', '.join(sorted(READ))}"
            )
        body[key] = read(value, "command line").value
    # The pictures are normalised as the network knows them.
    section = {**body, "name": name, "batch_size": 1, "in_memory": False}
    section["normalize"] = {"mean": list(own.mean), "std": list(own.std)}
    text = {"name": "probe", "data": section, "losses": {"ce": {}}, "optimizer": {"lr": 0.1}, "schedule": {"epochs": 1}}
    text["student"] = {"model": run.student.model, **run.student.options}
    return load_text(write(text), "--data", registry).config


def _size(own: Data, device: torch.device) -> tuple[int, int]:
    """Height and width of the pictures that the networks of a run are evaluated on."""
    picture = next(iter(Feed(own.test, own.evaluate, 1, device).batches([torch.tensor([0])], view=0)))
    return tuple(picture.shape[-2:])


def _network(
    config: Config, weights: Path, role: str, own: Data, networks: Networks, size: tuple[int, int]
) -> tuple[Tapped, Rebuilt]:
    found = rebuild(config, networks.registry, networks.data_root, str(weights), role, networks.device, own)
    student = found.parts.student
    if found.network is not student.model:
        raise ConfigError(
            f"a loss of {config.name} gives its student another head, and what goes into that one is not known: "
            "such a student cannot be probed"
        )
    network = Tapped(student.model, student.layers, {"embedding"}, student.name)
    example = torch.zeros(2, own.channels, *size, device=networks.device, dtype=found.parts.precision.dtype)
    shapes_of(network, example)
    return network.eval(), found


@torch.no_grad()
def _embed(
    network: Tapped, found: Rebuilt, split: Split, pipeline: Pipeline, config: Config, networks: Networks
) -> Embeddings:
    feed = Feed(split, pipeline, config.data.threads, networks.device)
    positions = torch.arange(len(split)).split(together(networks.device))
    precision, rows = found.parts.precision, []
    for pictures in feed.batches(positions, view=0):
        outputs = precision.run(network, found.normalize(pictures, precision.dtype))
        rows.append(outputs.embedding.float().cpu())
    return Embeddings(torch.cat(rows), split.labels)
