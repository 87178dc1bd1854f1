"""What losses on feature maps share: which maps of two networks belong together, and how two sizes become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .distiller import Setup, Shapes
from .errors import ConfigError

MapChoice = Annotated[
    tuple[int, ...] | None,
    Field(
        min_length=1,
        description="Which maps, 0 the stem's and −1 the last; without it all but the stem's, from the deep end.",
    ),
]
"""Type of an option that `paired_maps` takes as `chosen`: `maps: MapChoice = None`."""


def paired_maps(
    method: str,
    setup: Setup,
    kind: str,
    chosen: Sequence[int] | None = None,
    *,
    kind_t: str | None = None,
    first: int = 1,
    least: int = 1,
    spatial: bool = True,
) -> tuple[int, ...]:
    """Places i, so that map i of the student belongs to map i of the teacher, in `Outputs` as in `Shapes`.

    kind: `features` or `preactivations`; kind_t: the teacher's, where it is another. chosen: 0 the stem's map, −1 the
    last; None: all but the `first` ones that both networks have, counted from the deep end, so that their depths may
    differ. Raises ConfigError, in the name of `method`, where one of the networks lacks a map, where there are fewer
    than `least`, and, if `spatial`, where one has another shape than (C, H, W).
    """
    kind_t = kind_t or kind
    shapes_s, shapes_t = getattr(setup.student, kind), getattr(setup.teacher, kind_t)
    n = min(len(shapes_s), len(shapes_t))
    maps = tuple(range(first - n, 0)) if chosen is None else tuple(chosen)
    lacking = [i for i in maps if not -n <= i < n]
    if n and lacking:
        raise ConfigError(
            f"{method}: there is no map {lacking[0]} in both networks. Of their maps they share {n}; choose from −{n} "
            f"to {n - 1}."
        )
    paired = [side[i] for side in (shapes_s, shapes_t) for i in maps] if n else []
    if len(paired) < 2 * least or (spatial and any(len(shape) != 3 for shape in paired)):
        raise ConfigError(
            f"{method} compares the maps {'(C, H, W) ' if spatial else ''}of {least} or more stages"
            f"{' beside the stem, the first' if chosen is None and first else ''}; the student has {list(shapes_s)}, "
            f"the teacher {list(shapes_t)}. Name others in the student's "
            f"`layers: {{{kind}: [...]}}` and the teacher's `layers: {{{kind_t}: [...]}}`."
        )
    return maps


def last_maps(method: str, **sides: Shapes) -> tuple[tuple[int, ...], ...]:
    """Shapes (C, H, W) of the last maps: `last_maps(method, student=setup.student, teacher=setup.teacher)`.

    Raises ConfigError, in the name of `method`, where one has another shape.
    """
    for side, shapes in sides.items():
        if len(shapes.last_map) != 3:
            raise ConfigError(
                f"{method} needs a last map (C, H, W) of the {side}; its has the shape {shapes.last_map}. Name another "
                f"in the {side}'s `layers: {{last_map: ...}}`."
            )
    return tuple(shapes.last_map for shapes in sides.values())


def same_size(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) and (B, C′, H′, W′), average-pooled to min(H, H′) × min(W, W′)."""
    if f.shape[2:] == g.shape[2:]:
        return f, g
    size = [min(a, b) for a, b in zip(f.shape[2:], g.shape[2:])]
    return F.adaptive_avg_pool2d(f, size), F.adaptive_avg_pool2d(g, size)


def map_connector(method: str, shape_s: Sequence[int], shape_t: Sequence[int]) -> nn.Module:
    """A convolution from maps of shape_s = (C, H, W) to maps of shape_t: by a stride of 2, up or down, or by a kernel
    without padding that cuts the surplus.

    Raises ConfigError, in the name of `method`, where the student's map is smaller and not half as large.
    """
    (C_s, *size_s), (C_t, *size_t) = shape_s, shape_t
    if all(s == 2 * t for s, t in zip(size_s, size_t)):
        return nn.Conv2d(C_s, C_t, 3, stride=2, padding=1)
    if all(2 * s == t for s, t in zip(size_s, size_t)):
        return nn.ConvTranspose2d(C_s, C_t, 4, stride=2, padding=1)
    if all(s >= t for s, t in zip(size_s, size_t)):
        return nn.Conv2d(C_s, C_t, tuple(1 + s - t for s, t in zip(size_s, size_t)))
    raise ConfigError(
        f"{method}: the student's map is {tuple(shape_s)}, the teacher's {tuple(shape_t)} (channels, height, width); "
        "the student's may be larger, or half as large. Choose other maps."
    )
