"""Linear CKA against its definition in plain loops, and what it must not see."""

import math

import pytest
import torch

from kdray.run.cka import centred_gram, cka

N = 12


def features(width, seed):
    return torch.randn(N, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(x):
    return [[0.0 if i == j else sum(a * b for a, b in zip(x[i], x[j])) for j in range(N)] for i in range(N)]


def hsic(x, y):
    """Song et al. (2012), equation 5: K and L are Gram matrices with a diagonal of 0."""
    k, m, rows = gram(x.tolist()), gram(y.tolist()), range(N)
    trace = sum(k[i][j] * m[j][i] for i in rows for j in rows)
    sums = sum(map(sum, k)) * sum(map(sum, m)) / ((N - 1) * (N - 2))
    product = sum(k[h][i] * m[i][j] for h in rows for i in rows for j in rows)
    return (trace + sums - 2 / (N - 2) * product) / (N * (N - 3))


@pytest.mark.parametrize("widths", [(3, 5), (40, 2)])
def test_the_definition(widths):
    x, y = features(widths[0], 0) + 3, features(widths[1], 1)
    y[:, 0] += x[:, 0]
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5
    assert cka(centred_gram(x), centred_gram(y)) == pytest.approx(expected, abs=1e-10)


def test_what_it_does_not_see():
    """A rotation, a scale and a shift."""
    x = features(5, 0)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    assert cka(centred_gram(x), centred_gram(7 * x @ rotation - 100)) == pytest.approx(1)


def test_few_pictures_of_many_features():
    """Unrelated ones are; by the plain estimate they would be nearly the same."""
    found = []
    for seed in range(20):
        x, y = features(2000, 2 * seed), features(2000, 2 * seed + 1)
        found.append(cka(centred_gram(x), centred_gram(y)))
    assert abs(sum(found) / 20) < 0.1
    x, y = (z - z.mean(0) for z in (x, y))
    plain = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.9


def test_a_layer_that_tells_nothing():
    same = torch.ones(N, 3)
    assert math.isnan(cka(centred_gram(same), centred_gram(features(3, 0))))
