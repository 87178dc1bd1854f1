"""Made-up networks and a made-up training set: what a distiller is handed in a check."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from ..distiller import Outputs, Requires, Setup
from .evaluate import named, shapes_of

SAMPLES, BATCH = 40, 8
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Sizes:
    """(C, H, W) of a network's maps, and of the one that is pooled to the embedding."""

    maps: tuple[Size, ...]
    last: Size


_SLIM = Sizes(((3, 16, 16), (4, 16, 16), (6, 8, 8), (8, 4, 4)), (8, 4, 4))
_WIDE = Sizes(((4, 16, 16), (6, 16, 16), (8, 8, 8), (12, 4, 4)), (12, 4, 4))
_OTHER = Sizes(((3, 16, 16), (4, 8, 8), (6, 4, 4), (8, 2, 2)), (10, 2, 2))
_DEEP = Sizes(((4, 16, 16), (6, 16, 16), (8, 8, 8), (10, 4, 4), (12, 2, 2)), (14, 2, 2))
PAIRS = {
    "a narrower student": (_SLIM, _WIDE, 5),
    "equal networks": (_WIDE, _WIDE, 5),
    "a deeper teacher, other resolutions": (_OTHER, _DEEP, 3),
}
"""Name to sizes of student and teacher, and the number of classes."""


class MadeUp(nn.Module):
    """A frozen random network: every map is seen straight from the picture, so that samples differ in all of them.

    What depends on each other in a real network does so here: features = relu(preactivations), the embedding is the
    mean of the last map, the logits are the head's answer to the embedding.
    """

    def __init__(self, sizes: Sizes, num_classes: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.sizes = sizes
        self.own_last = sizes.last != sizes.maps[-1]
        places = [*sizes.maps, *([sizes.last] if self.own_last else [])]
        self.eyes = [(random(channels, 3), side) for channels, side, _ in places]
        self.weight, self.bias = random(num_classes, sizes.last[0]), torch.zeros(num_classes, dtype=torch.float64)
        logits = self(made_up_pictures("", SAMPLES)).logits
        self.weight = 2 * self.weight / logits.std()
        self.bias = -2 * logits.mean(dim=0) / logits.std()

    def forward(self, pictures: Tensor, scale: float = 1.0, dead: Tensor | None = None) -> Outputs:
        """dead (B,): samples for which every unit is silent."""
        dtype, pictures = pictures.dtype, pictures.double()
        before = []
        for weight, side in self.eyes:
            pooled = nn.functional.adaptive_avg_pool2d(pictures, side)
            x = scale * torch.einsum("oc,bchw->bohw", weight, pooled)
            before.append(x if dead is None else torch.where(dead[:, None, None, None], -x.abs(), x))
        after = [x.relu() for x in before]
        embedding = after[-1].mean(dim=(2, 3))
        maps = len(self.sizes.maps)
        whole = Outputs(
            logits=embedding @ self.weight.T + self.bias,
            embedding=embedding,
            features=after[:maps],
            preactivations=before[:maps],
            last_map=after[-1],
            head=(self.weight, self.bias),
            pictures=pictures,
        )
        return cast(whole, lambda x: x.to(dtype))


@cache
def made_up_pictures(view: str, count: int) -> Tensor:
    """(count, 3, 16, 16): every sample has a colour of its own, and a view of it is the picture with noise."""
    generator = torch.Generator().manual_seed(7)
    colour = 1.5 * torch.randn(count, 3, 1, 1, generator=generator, dtype=torch.float64)
    pictures = colour + torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64)
    if view:
        generator.manual_seed(zlib.crc32(view.encode()))
        pictures = pictures + 0.5 * torch.randn(pictures.shape, generator=generator, dtype=torch.float64)
    return pictures


def cast(outputs: Outputs, function) -> Outputs:
    """`function` of every tensor of `outputs`."""
    return Outputs(
        **{
            key: function(value)
            for key in ("logits", "embedding", "last_map", "pictures")
            if (value := getattr(outputs, key)) is not None
        },
        **{key: [function(x) for x in getattr(outputs, key)] for key in ("features", "preactivations")},
        head=outputs.head and tuple(x if x is None else function(x) for x in outputs.head),
        views={name: cast(view, function) for name, view in outputs.views.items()},
    )


def only(outputs: Outputs, kinds: frozenset[str]) -> Outputs:
    """Of the `kinds` alone: the rest is what an absent output is."""
    return Outputs(**{kind: getattr(outputs, kind) for kind in kinds})


class Scene:
    """Two networks of `PAIRS` and SAMPLES labelled pictures.

    variant: "plain"; "large", with activations a hundred times as large; "dead", where one sample in four has silent
    units only, and another is the copy of a third.
    """

    def __init__(self, pair: str, variant: str = "plain"):
        self.pair, self.variant = pair, variant
        student, teacher, self.num_classes = PAIRS[pair]
        self.networks = {
            "student": MadeUp(student, self.num_classes, 1),
            "teacher": MadeUp(teacher, self.num_classes, 2),
        }
        self._seen: dict[tuple[str, str], Outputs] = {}
        # The teacher is right about most of them, and no class is without a sample.
        right = self._all("teacher", "").logits.argmax(dim=1)
        turn = torch.arange(SAMPLES)
        self.labels = torch.where(turn % 4 == 3, turn // 4 % self.num_classes, right)

    def setup(self, requires: Requires, dtype: torch.dtype) -> Setup:
        sides = {}
        for side in ("student", "teacher"):
            kinds = getattr(requires, side)
            sides[side] = (
                shapes_of(only(self._all(side, ""), kinds | {"logits"})) if kinds or side == "student" else None
            )
        head = self.networks["teacher"]
        return Setup(
            **sides,
            num_classes=self.num_classes,
            num_samples=SAMPLES,
            labels=self.labels.clone(),
            generator=torch.Generator().manual_seed(3),
            teacher_head=(head.weight.to(dtype), head.bias.to(dtype)) if "head" in requires.teacher else None,
            batch_size=BATCH,
            new_student=self._new_student,
        )

    def outputs(self, side: str, requires: Requires, index: Tensor, dtype: torch.dtype) -> Outputs:
        """Of the samples `index`, as leaves of their own."""
        kinds = getattr(requires, side)
        if not kinds:
            return Outputs()

        def of(view):
            whole = self._all(side, view)
            found = cast(only(whole, kinds - {"head"}), lambda x: x[index].to(dtype))
            if "head" in kinds:
                found.head = tuple(x.to(dtype, copy=True) for x in whole.head)
            return found

        found = of("")
        found.views = {name: of(name) for name in requires.views if side == "teacher" or requires.student_views}
        return found

    def answering(self, requires: Requires) -> nn.Module:
        """The student as a network from pictures to `Outputs`, as `Distiller.deployed` gets it."""
        return _Answering(self.networks["student"], requires.student | {"logits"})

    def _all(self, side, view):
        if (side, view) not in self._seen:
            pictures, dead = made_up_pictures(view, SAMPLES).clone(), None
            if self.variant == "dead":
                pictures[1::4], dead = pictures[0::4], torch.arange(SAMPLES) % 4 == 2
            self._seen[side, view] = self.networks[side](pictures, 100.0 if self.variant == "large" else 1.0, dead)
        return self._seen[side, view]

    def _new_student(self):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, self.num_classes),
        )


class _Answering(nn.Module):
    def __init__(self, network, kinds):
        super().__init__()
        self.network, self.kinds = network, kinds

    def forward(self, pictures):
        return only(self.network(pictures), self.kinds)


@cache
def scene(pair: str, variant: str = "plain") -> Scene:
    """Scenes do not change: they are made once."""
    return Scene(pair, variant)


def places(outputs: Outputs) -> dict[str, Tensor]:
    """The tensors that can take a gradient, by their place; one that stands in two places has the first name."""
    return {name: x for name, x in named(outputs).items() if "pictures" not in name}
