"""The losses of the peers as their code computes them, for benchmarks/peers.py.

Followed is RepDistiller (github.com/HobbitLong/RepDistiller, b84f547): the same operations on tensors of the same
shapes, also where they are slow (rows copied from the banks, B × B × D differences, channels multiplied pair by pair,
whole singular value decompositions), in words of our own. A criterion is made of the shapes of what it reads of
student and teacher, and called with that: logits (B, C), vectors (B, D), a map (B, C, H, W) or a list of maps. Values
agree with kdray's plugins (tests/benchmarks/test_peers.py).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-7


def kl(s: Tensor, t: Tensor, temperature: float = 4.0) -> Tensor:
    """T² KL(p_t ‖ p_s), mean over the batch."""
    log_s, p_t = F.log_softmax(s / temperature, dim=1), F.softmax(t / temperature, dim=1)
    return F.kl_div(log_s, p_t, reduction="sum") * temperature**2 / len(s)


def smaller(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the size of the smaller one."""
    size = min(s.shape[2], t.shape[2])
    return tuple(f if f.shape[2] == size else F.adaptive_avg_pool2d(f, (size, size)) for f in (s, t))


# -- contrastive ---------------------------------------------------------------------------------------------------


class Embed(nn.Module):
    """To vectors of length 1."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.flatten(1))
        return x / x.pow(2).sum(dim=1, keepdim=True).pow(0.5)


class CRD(nn.Module):
    """Each anchor meets K + 1 rows copied out of the other side's bank, its own first. Z is fixed by the first batch,
    and the banks are written in the forward pass, after they are read."""

    def __init__(self, s: torch.Size, t: torch.Size, samples: int, dim: int = 128, tau: float = 0.07, momentum=0.5):
        super().__init__()
        self.embed_s, self.embed_t = Embed(s[1], dim), Embed(t[1], dim)
        self.samples, self.tau, self.momentum = samples, tau, momentum
        bound = (dim / 3) ** -0.5
        for side in "st":
            self.register_buffer(f"bank_{side}", torch.empty(samples, dim).uniform_(-bound, bound))
            self.register_buffer(f"z_{side}", torch.tensor(-1.0))

    def forward(self, s: Tensor, t: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        """index (B,): the samples · drawn (B, K + 1): the rows that each meets."""
        s, t = self.embed_s(s), self.embed_t(t)
        scores_t, scores_s = self._scores(self.bank_s, t, drawn), self._scores(self.bank_t, s, drawn)
        scores_s, scores_t = self._normalised(scores_s, self.z_s), self._normalised(scores_t, self.z_t)
        with torch.no_grad():
            for bank, fresh in ((self.bank_s, s), (self.bank_t, t)):
                rows = torch.index_select(bank, 0, index).mul_(self.momentum).add_(fresh * (1 - self.momentum))
                bank.index_copy_(0, index, rows / rows.pow(2).sum(dim=1, keepdim=True).pow(0.5))
        return self._critic(scores_s) + self._critic(scores_t)

    def _scores(self, bank: Tensor, anchor: Tensor, drawn: Tensor) -> Tensor:
        rows = torch.index_select(bank, 0, drawn.flatten()).view(*drawn.shape, -1)  # (B, K + 1, d): 537 MB
        return torch.exp(torch.bmm(rows, anchor[:, :, None]) / self.tau)

    def _normalised(self, scores: Tensor, z: Tensor) -> Tensor:
        if z.item() < 0:
            z.copy_(scores.detach().mean() * self.samples)
        return (scores / z.item()).contiguous()

    def _critic(self, x: Tensor) -> Tensor:
        noise = (x.shape[1] - 1) / self.samples
        positive, negative = x[:, 0], x[:, 1:]
        hit = (positive / (positive + noise + EPS)).log_()
        miss = (torch.full_like(negative, noise) / (negative + noise + EPS)).log_()
        return -(hit.sum() + miss.flatten().sum()) / len(x)


# -- relations between samples -------------------------------------------------------------------------------------


def sp(s: Tensor, t: Tensor) -> Tensor:
    gram_s, gram_t = (F.normalize(f.flatten(1) @ f.flatten(1).t()) for f in (s, t))
    difference = gram_t - gram_s
    return (difference * difference).sum() / len(s) ** 2


def rkd(s: Tensor, t: Tensor) -> Tensor:
    with torch.no_grad():
        distance_t, angle_t = _distances(t), _angles(t)
    return 25 * F.smooth_l1_loss(_distances(s), distance_t) + 50 * F.smooth_l1_loss(_angles(s), angle_t)


def _distances(x: Tensor) -> Tensor:
    squares, products = x.pow(2).sum(dim=1), x @ x.t()
    found = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=1e-12).sqrt().clone()
    found[range(len(x)), range(len(x))] = 0
    return found / found[found > 0].mean()


def _angles(x: Tensor) -> Tensor:
    unit = F.normalize(x[None, :] - x[:, None], dim=2)  # (B, B, D)
    return torch.bmm(unit, unit.transpose(1, 2)).flatten()


def pkt(s: Tensor, t: Tensor) -> Tensor:
    p_s, p_t = _neighbours(s), _neighbours(t)
    return (p_t * torch.log((p_t + EPS) / (p_s + EPS))).mean()


def _neighbours(x: Tensor) -> Tensor:
    x = x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + EPS)
    x[x != x] = 0
    similarity = (x @ x.t() + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


class CC(nn.Module):
    """Of neighbours in the batch."""

    def __init__(self, s: torch.Size, t: torch.Size, dim: int = 128):
        super().__init__()
        self.embed_s, self.embed_t = nn.Linear(s[1], dim), nn.Linear(t[1], dim)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        distance = (self.embed_s(s.flatten(1)) - self.embed_t(t.flatten(1))).abs()
        return (distance[:-1] * distance[1:]).sum(dim=1).mean()


# -- maps ----------------------------------------------------------------------------------------------------------


def at(s: list[Tensor], t: list[Tensor]) -> Tensor:
    pairs = [smaller(f_s, f_t) for f_s, f_t in zip(s, t)]
    return sum((_attention(f_s) - _attention(f_t)).pow(2).mean() for f_s, f_t in pairs)


def _attention(f: Tensor) -> Tensor:
    return F.normalize(f.pow(2).mean(dim=1).flatten(1))


def regressor(shape_s: torch.Size, shape_t: torch.Size, activated: bool = True) -> nn.Module:
    """A convolution from maps of shape_s (B, C, H, W) to those of shape_t, with batch norm."""
    c_s, size_s, c_t, size_t = shape_s[1], shape_s[2], shape_t[1], shape_t[2]
    if size_s == 2 * size_t:
        conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
    elif 2 * size_s == size_t:
        conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
    else:
        conv = nn.Conv2d(c_s, c_t, 1 + size_s - size_t)
    return nn.Sequential(conv, nn.BatchNorm2d(c_t), *([nn.ReLU(inplace=True)] if activated else []))


class Hint(nn.Module):
    def __init__(self, s: torch.Size, t: torch.Size):
        super().__init__()
        self.regressor = regressor(s, t)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(self.regressor(s), t)


class VID(nn.Module):
    def __init__(self, s: list[torch.Size], t: list[torch.Size]):
        super().__init__()
        self.maps = nn.ModuleList(Variational(f_s[1], f_t[1]) for f_s, f_t in zip(s, t))

    def forward(self, s: list[Tensor], t: list[Tensor]) -> Tensor:
        return sum(of_map(f_s, f_t) for of_map, f_s, f_t in zip(self.maps, s, t))


class Variational(nn.Module):
    """The student's map predicts the teacher's with a variance a channel."""

    def __init__(self, c_s: int, c_t: int, variance: float = 5.0, least: float = 1e-5):
        super().__init__()
        widths = (c_s, c_t, c_t, c_t)
        layers = [layer for pair in pairwise(widths) for layer in (nn.Conv2d(*pair, 1, bias=False), nn.ReLU())]
        self.mean, self.least = nn.Sequential(*layers[:-1]), least
        self.scale = nn.Parameter(torch.full((c_t,), variance - least).exp().sub(1).log())

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        s, t = smaller(s, t)
        variance = (torch.log(1 + torch.exp(self.scale)) + self.least).view(1, -1, 1, 1)
        return (0.5 * ((self.mean(s) - t) ** 2 / variance + torch.log(variance))).mean()


def nst(s: list[Tensor], t: list[Tensor]) -> Tensor:
    return sum(_discrepancy(f_s, f_t) for f_s, f_t in zip(s, t))


def _discrepancy(s: Tensor, t: Tensor) -> Tensor:
    s, t = (F.normalize(f.flatten(2), dim=2) for f in smaller(s, t))
    return _polynomial(t, t).mean().detach() + _polynomial(s, s).mean() - 2 * _polynomial(s, t).mean()


def _polynomial(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] * y[:, :, None]).sum(dim=-1).pow(2)  # by way of (B, C, C, H · W)


def kdsvd(s: list[Tensor], t: list[Tensor]) -> Tensor:
    before, loss = None, 0
    for f_s, f_t in zip(s, t):
        sigma, v_t = _singular(f_t, 1)
        _, v_s = _singular(f_s, 4)
        cosine = v_s.transpose(1, 2) @ v_t
        nearest = cosine.abs() == cosine.abs().amax(dim=1, keepdim=True)
        v_s = v_s @ torch.where(nearest, cosine.sign(), torch.zeros_like(cosine)) * sigma[:, None]
        v_t = v_t * sigma[:, None]
        if before:
            rbf_s, rbf_t = (torch.exp(-((v[:, :, None] - w[:, None]) ** 2) / 8) for v, w in zip((v_s, v_t), before))
            square = (rbf_s - rbf_t.detach()).pow(2)
            loss = loss + torch.where(square.isfinite(), square, torch.zeros_like(square)).sum() / len(f_s)
        before = v_s, v_t
    return loss


def _singular(f: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Singular values (B, n) and right singular vectors (B, C, n) of the maps as matrices (H · W, C)."""
    _, sigma, v = (torch.where(x.isfinite(), x, torch.zeros_like(x)) for x in torch.svd(f.flatten(2).transpose(1, 2)))
    return F.normalize(sigma[:, :n], dim=1), F.normalize(v[:, :, :n], dim=1)


class FT(nn.Module):
    """A translator of the student's map follows the code of a paraphraser, which was trained before."""

    def __init__(self, s: torch.Size, t: torch.Size):
        super().__init__()
        half = t[1] // 2
        self.translator = convolutions(nn.Conv2d, (s[1], s[1], half, half), norm=True)
        self.paraphraser = (convolutions(nn.Conv2d, (t[1], t[1], half, half)),)  # in a tuple: not trained here

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        s, t = smaller(self.translator(s), self.paraphraser[0](t))
        return (_attention(s) - _attention(t)).abs().mean()


def convolutions(conv: type[nn.Module], widths: tuple[int, ...], norm: bool = False) -> nn.Sequential:
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [conv(inputs, outputs, 3, 1, 1), *([nn.BatchNorm2d(outputs)] if norm else [])]
        layers.append(nn.LeakyReLU(0.1, inplace=True))
    return nn.Sequential(*layers)


# -- what trains before the main loop ------------------------------------------------------------------------------


class AB(nn.Module):
    """The student's pre-activations, through connectors where shapes differ, on the teacher's side of 0."""

    def __init__(self, s: list[torch.Size], t: list[torch.Size]):
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Sequential() if f_s[1:] == f_t[1:] else regressor(f_s, f_t, activated=False) for f_s, f_t in zip(s, t)
        )

    def forward(self, s: list[Tensor], t: list[Tensor]) -> Tensor:
        loss = 0
        for place, (connect, z_s, z_t) in enumerate(zip(self.connectors, s, t)):
            z_s = connect(z_s)
            above = (z_s + 1) ** 2 * ((z_s > -1) & (z_t <= 0)).float()
            below = (z_s - 1) ** 2 * ((z_s <= 1) & (z_t > 0)).float()
            loss = loss + 2.0 ** (place - len(s) + 1) * (above + below).abs().sum() / len(z_s) / 1000 * 3
        return loss


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map."""

    def __init__(self, s: torch.Size, t: torch.Size):
        super().__init__()
        half = t[1] // 2
        self.encoder = convolutions(nn.Conv2d, (t[1], t[1], half, half))
        self.decoder = convolutions(nn.ConvTranspose2d, (half, half, t[1], t[1]))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(self.decoder(self.encoder(t)), t)


def fsp(s: list[Tensor], t: list[Tensor]) -> Tensor:
    return sum((_flow(*of_s) - _flow(*of_t)).pow(2).mean() for of_s, of_t in zip(pairwise(s), pairwise(t)))


def _flow(low: Tensor, high: Tensor) -> Tensor:
    low, high = smaller(low, high)
    return (low.flatten(2)[:, None] * high.flatten(2)[:, :, None]).mean(dim=-1)  # by way of (B, C′, C, H · W)
