"""The training step of the peers, re-created: what `kdray train` is compared with in benchmarks/speed.py.

    python benchmarks/peers.py METHOD [--teacher resnet32x4] [--student resnet8x4] [--stage] [--steps 12] [--tuned]

METHOD: ce (a network alone), kd, crd, hint, at, sp, cc, vid, rkd, pkt, ab, ft, fsp, nst, kdsvd; --stage is what ab, ft
and fsp do before their main loop. Prints the seconds of each step as JSON.

Followed is RepDistiller's loop (github.com/HobbitLong/RepDistiller, b84f547), in words of our own: batches of 64 from a
DataLoader with 8 workers over PIL pictures and torchvision's transforms (for crd also the negatives, drawn by numpy for
each sample); fp32, NCHW, eager; the student's forward pass with its feature maps; the teacher's, without gradient, in
evaluation mode, at every step, also where the loss does not look at it; cross-entropy, KL and the method's loss, the
first two whatever their weights; top-1 and top-5 accuracy and `loss.item()` at each step; torch.optim.SGD as it comes.
mdistiller and torchdistill do the same work at the same speed.

The networks are kdray's zoo, in plain torch modules without tricks of its own: with RepDistiller's weights ResNet-8x4
and WRN-16-2 give its maps bit for bit, in the same processor time (forward and backward, within 2 %). Maps are read by
hooks. One thing is set back: a block's last ReLU, in place in kdray's ResNets, makes a new tensor here, as there.

--tuned: with the memory settings of kdray's workers (kdray/engine/allocator.py).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import peers_losses as losses
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdray.config.schema import ModelConfig
from kdray.engine.allocator import keep_freed_memory
from kdray.models.build import build_model
from kdray.models.cifar.resnet import Block
from kdray.registry import Registry

N, CLASSES, BATCH, NEGATIVES = 50_000, 100, 64, 16_384
SPARE = 4
"""Steps that warm up."""
MOST = 20.0
"""Seconds after which no further step is measured, where three are."""


class Pictures(Dataset):
    """Random ones, with the work that CIFAR-100's take. With `negatives`, also the sample and K of other classes."""

    def __init__(self, negatives: bool):
        random = np.random.default_rng(0)
        self.pictures = random.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
        self.labels = np.arange(N) % CLASSES
        self.others = [np.flatnonzero(self.labels != c) for c in range(CLASSES)] if negatives else None
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
            ]
        )

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int):
        picture, label = self.transform(Image.fromarray(self.pictures[index])), int(self.labels[index])
        if self.others is None:
            return picture, label, index
        drawn = np.random.choice(self.others[label], NEGATIVES, replace=False)
        return picture, label, index, np.hstack((np.asarray([index]), drawn))


def new_tensor_at_block_end(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Block):
            module.relu2.inplace = False


class Network(nn.Module):
    """A network of the zoo that returns its maps and the pooled vector, stem first, and the logits."""

    def __init__(self, name: str, preactivations: bool = False):
        super().__init__()
        built = build_model(ModelConfig(model=name), Registry.default(), CLASSES, 3)
        self.model, self.found = built.model, []
        new_tensor_at_block_end(self.model)
        for path in built.layers.preactivations if preactivations else built.layers.features:
            module, _, before = path.partition(":")
            module = self.model.get_submodule(module)
            if before:
                module.register_forward_pre_hook(lambda _, given: self.found.append(given[0]))
            else:
                module.register_forward_hook(lambda _, given, output: self.found.append(output))
        head = self.model.get_submodule(built.layers.head)
        head.register_forward_pre_hook(lambda _, given: self.found.append(given[0]))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        self.found = []
        logits = self.model(x)
        return self.found, logits


def vector(f: list):
    return f[-1]


def last_map(f: list):
    return f[-2]


def middle(f: list):
    return f[2]


def stages_of(f: list):
    """The maps without the stem's."""
    return f[1:-1]


def maps(f: list):
    return f[:-1]


def just(loss: Callable) -> Callable:
    """For a loss without parameters, which is made of no shapes."""
    return lambda s, t: loss


METHODS = {
    "kd": ((0.1, 0.9, 0.0), vector, just(lambda s, t: 0)),
    "crd": ((1.0, 0.0, 0.8), vector, partial(losses.CRD, samples=N)),
    "hint": ((1.0, 0.0, 100.0), middle, losses.Hint),
    "at": ((1.0, 0.0, 1000.0), stages_of, just(losses.at)),
    "sp": ((1.0, 0.0, 3000.0), last_map, just(losses.sp)),
    "cc": ((1.0, 0.0, 0.02), vector, losses.CC),
    "vid": ((1.0, 0.0, 1.0), stages_of, losses.VID),
    "rkd": ((1.0, 0.0, 1.0), vector, just(losses.rkd)),
    "pkt": ((1.0, 0.0, 30000.0), vector, just(losses.pkt)),
    "ab": ((1.0, 0.0, 1.0), vector, just(lambda s, t: 0)),
    "ft": ((1.0, 0.0, 200.0), last_map, losses.FT),
    "fsp": ((1.0, 0.0, 50.0), vector, just(lambda s, t: 0)),
    "nst": ((1.0, 0.0, 50.0), stages_of, just(losses.nst)),
    "kdsvd": ((1.0, 0.0, 1.0), stages_of, just(losses.kdsvd)),
}
"""By name: weights of cross-entropy, KL and the loss, as in the published script; what the loss reads; the loss of the
shapes of that."""
STAGES = {
    "ab": (stages_of, losses.AB),
    "ft": (last_map, losses.Paraphraser),
    "fsp": (maps, just(losses.fsp)),
}
"""The same of what trains before the main loop: the loss alone, without labels."""


class Distillation:
    """stage: the one before the main loop in its stead. weights: the teacher's, a file of kdray's."""

    def __init__(self, name: str, teacher: str, student: str, weights: Path | None, stage: bool):
        preactivations = name == "ab"
        self.student, self.teacher = Network(student, preactivations), Network(teacher, preactivations).eval()
        if weights:
            self.teacher.model.load_state_dict(load_file(weights))
        with torch.no_grad():
            shapes = [
                [f.shape for f in net.eval()(torch.randn(2, 3, 32, 32))[0]] for net in (self.student, self.teacher)
            ]
        self.weights, (self.read, make) = (None, STAGES[name]) if stage else (METHODS[name][0], METHODS[name][1:])
        self.loss = make(*map(self.read, shapes))
        self.student.train(not (stage and name == "ft"))  # whose paraphraser trains alone
        trained = nn.ModuleList(m for m in (self.student, self.loss) if isinstance(m, nn.Module) and m.training)
        self.optimizer = sgd(trained)

    def step(self, pictures: Tensor, labels: Tensor, index: Tensor, *drawn: Tensor) -> None:
        pictures = pictures.float()
        f_s, logits_s = self.student(pictures)
        with torch.no_grad():
            f_t, logits_t = self.teacher(pictures)
            f_t = [f.detach() for f in f_t]
        rest = (index, *drawn) if drawn else ()
        if self.weights is None:
            loss = self.loss(self.read(f_s), self.read(f_t))
        else:
            terms = (F.cross_entropy(logits_s, labels), losses.kl(logits_s, logits_t))
            terms += (self.loss(self.read(f_s), self.read(f_t), *rest),)
            loss = sum(weight * term for weight, term in zip(self.weights, terms))
            accuracy(logits_s, labels)
        loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Alone:
    """A network learns from the labels: a teacher, or a baseline."""

    def __init__(self, student: str):
        self.network = build_model(ModelConfig(model=student), Registry.default(), CLASSES, 3).model.train()
        new_tensor_at_block_end(self.network)
        self.optimizer = sgd(self.network)

    def step(self, pictures: Tensor, labels: Tensor, index: Tensor) -> None:
        logits = self.network(pictures.float())
        loss = F.cross_entropy(logits, labels)
        accuracy(logits, labels)
        loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def sgd(trained: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def accuracy(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Top-1 and top-5, in percent."""
    with torch.no_grad():
        found = logits.topk(5, dim=1).indices.t()
        hit = found.eq(labels.view(1, -1).expand_as(found))
        return [hit[:k].flatten().float().sum() * (100 / len(labels)) for k in (1, 5)]


def measure(step: Callable, batches: Iterable, steps: int) -> list[float]:
    """Seconds of each step, the wait for its batch included."""
    seconds, began = [], time.perf_counter()
    for number, batch in enumerate(batches):
        step(*batch)
        now = time.perf_counter()
        if number >= SPARE:
            seconds.append(now - began)
        if len(seconds) == steps or (len(seconds) >= 3 and sum(seconds) > MOST):
            return seconds
        began = now
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["ce", *METHODS])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--weights", type=Path, help="of the teacher, .safetensors; default: random ones")
    parser.add_argument("--stage", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=8, help="of the DataLoader; 0 and 2 are as fast on two cores")
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    if args.tuned:
        keep_freed_memory()
    if args.method == "ce":
        training = Alone(args.student)
    else:
        training = Distillation(args.method, args.teacher, args.student, args.weights, args.stage)
    pictures = Pictures(negatives=args.method == "crd")
    loader = DataLoader(pictures, batch_size=BATCH, shuffle=True, num_workers=args.workers)
    print(json.dumps(measure(training.step, loader, args.steps)))


if __name__ == "__main__":
    main()
