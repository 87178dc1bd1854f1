"""Scores with drawn rows of a memory are inner products, whatever part of the memory is held at a time."""

import pytest
import torch

from kdray.contrast import product
from kdray.contrast.product import drawn_product

B, N, D, K = 5, 23, 4, 9


@pytest.mark.parametrize("at_once", [B * N, B * 7, B, 1], ids=["whole", "parts of 7", "rows", "less than a row"])
def test_scores_and_gradient(monkeypatch, at_once):
    monkeypatch.setattr(product, "AT_ONCE", at_once)
    torch.manual_seed(0)
    anchor = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    memory, weight = torch.randn(N, D, dtype=torch.float64), torch.randn(B, K, dtype=torch.float64)
    drawn = torch.randint(N, (B, K))
    drawn[:, 0], drawn[:, 1], drawn[:, 2] = 0, N - 1, N - 1  # both ends, and a row twice
    scores = drawn_product(anchor, memory, drawn)
    (gradient,) = torch.autograd.grad((scores * weight).sum(), anchor)
    by_hand = torch.zeros(B, D, dtype=torch.float64)
    for i in range(B):
        for k in range(K):
            row = memory[drawn[i, k]]
            assert float(scores.detach()[i, k]) == pytest.approx(float(anchor[i].detach() @ row))
            by_hand[i] += weight[i, k] * row
    torch.testing.assert_close(gradient, by_hand)


def test_a_step_holds_no_more_than_that(monkeypatch):
    """The largest product that is asked for."""
    seen, linear = [], product._linear

    def watched(x, weight):
        seen.append(x.shape[0] * max(x.shape[1], weight.shape[0]))
        return linear(x, weight)

    monkeypatch.setattr(product, "_linear", watched)
    monkeypatch.setattr(product, "AT_ONCE", B * 7)
    anchor = torch.randn(B, D, requires_grad=True)
    drawn_product(anchor, torch.randn(N, D), torch.randint(N, (B, K))).sum().backward()
    assert max(seen) == B * 7 and len(seen) == 2 * 4
