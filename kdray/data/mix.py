"""Mixup and CutMix: training pictures made of two samples, as functions of (seed, view, sample) like every view."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..config.schema import MixOptions
from ..errors import ConfigError
from .augment import Pipeline
from .source import size_of
from .views import stream, uniform

if TYPE_CHECKING:
    from .build import Split


class Drawn(NamedTuple):
    """What mixes B samples. partner (B,): ids of the other samples · share (B,): of the picture that is the sample's
    own, float32 · box (B, 4): top, left, bottom, right of the partner's part, where it is one."""

    partner: Tensor
    share: Tensor
    box: Tensor | None = None


class Mix(Pipeline):
    """The pictures of the pipeline `after`, each mixed with that of another sample of `split` as it looks in this view.

    A sample is mixed with probability p; one that is not has itself for a partner, and a share of 1. The partner is
    uniform over the split, the sample itself among it. λ ~ Beta(α, α) is the inverse of its distribution function at a
    uniform number, so that a sample takes one number for it, whatever α.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    variants = None

    def __init__(self, options: MixOptions, after: Pipeline, split: Split, seed: int):
        super().__init__([], seed, after)
        self.options, self.split = options, split

    def draw(self, ids: Tensor, view: int, size: tuple[int, int]) -> Drawn:
        """For the samples `ids` (B,), on the CPU, whose pictures are of `size` (H, W)."""
        from scipy.special import betaincinv

        o, u = self.options, uniform(stream(self.seed, "mix"), view, ids, 0, 5)
        mixed = u[:, 0] < o.p
        others = self.split.ids[(u[:, 1] * len(self.split)).long()]
        # In float32, since the last digits of betaincinv may be others in another build of scipy.
        share = torch.from_numpy(betaincinv(o.alpha, o.alpha, u[:, 2].numpy())).float()
        partner, share = torch.where(mixed, others, ids), torch.where(mixed, share, 1.0)
        return self.placed(partner, share, u[:, 3:], size)

    def labels(self, ids: Tensor, view: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Classes of the partners (B,), and the samples' own shares (B,)."""
        drawn = self.draw(ids, view, size)
        return self.split.labels_of(drawn.partner), drawn.share

    def placed(self, partner: Tensor, share: Tensor, u: Tensor, size: tuple[int, int]) -> Drawn:
        """u (B, 2) in [0, 1): for a place in the picture."""
        raise NotImplementedError

    def blend(self, own: Tensor, other: Tensor, drawn: Drawn) -> Tensor:
        """uint8 (B, C, H, W) of two like it; `drawn` on the same device."""
        raise NotImplementedError

    def __call__(self, images: Tensor, ids: Tensor, view: int) -> Tensor:
        own = self.after(images, ids, view)
        drawn = self.draw(ids.cpu(), view, own.shape[-2:])
        other = self._partners(own, ids, drawn.partner, view)
        return self.blend(own, other, Drawn(*(x if x is None else x.to(own.device) for x in drawn)))

    def _partners(self, own: Tensor, ids: Tensor, partner: Tensor, view: int) -> Tensor:
        """Their pictures as they look in `view`, (B, C, H, W) like the samples' own."""
        held = self.split.source.images_on(own.device)
        if held is not None:
            return self.after(held.index_select(0, partner.to(own.device)), partner, view)
        pictures = self.after.read(self.split.source, partner, view)
        for i, j, picture in zip(ids.tolist(), partner.tolist(), pictures):
            if picture.shape != own.shape[1:]:
                raise ConfigError(
                    f"data.mix: pictures {i} and {j} are {size_of(own)} and {size_of(picture)}, and only pictures of "
                    "one size can be mixed: use random_resized_crop in data.augment"
                )
        return torch.stack(pictures)

    def describe(self) -> list[tuple[str, int, dict]]:
        """Also of which samples the partners are drawn: another training set gives other pictures."""
        partners = hashlib.sha256(self.split.ids.numpy().tobytes()).hexdigest()
        return [*super().describe(), (self.name, self.version, {**self.options.model_dump(), "partners": partners})]


class Mixup(Mix):
    """x = λ x_i + (1 − λ) x_j, rounded (Zhang et al., ICLR 2018)."""

    name = "mixup"

    def placed(self, partner, share, u, size):
        return Drawn(partner, share)

    def blend(self, own, other, drawn):
        share = drawn.share[:, None, None, None]
        return (share * own + (1 - share) * other).round().to(torch.uint8)


class CutMix(Mix):
    """A box of x_j in x_i, of the area share 1 − λ and the picture's proportions (Yun et al., ICCV 2019).

    Its centre is a uniform pixel; what lies outside of the picture is cut off. The share is that of the real box.
    """

    name = "cutmix"

    def placed(self, partner, share, u, size):
        size = torch.tensor(size)
        half = ((1 - share.double()).sqrt()[:, None] * size / 2).long()  # (B, 2), as all that follows
        centre = (u * size).long()
        start, end = (centre - half).clamp(min=0), (centre + half).minimum(size)
        area = (end - start).prod(dim=1)
        return Drawn(partner, (1 - area / size.prod().double()).float(), torch.cat([start, end], dim=1))

    def blend(self, own, other, drawn):
        top, left, bottom, right = drawn.box[:, :, None].unbind(1)  # (B, 1) each
        y, x = (torch.arange(n, device=own.device) for n in own.shape[-2:])
        rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], other, own)


MIXES: dict[str, type[Mix]] = {cls.name: cls for cls in (Mixup, CutMix)}
