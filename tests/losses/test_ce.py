"""Cross-entropy against a plain loop in float64, also of pictures that are mixed of two."""

import math

import pytest
import torch

from kdray.testing import evaluate

B, C = 6, 5
G = torch.Generator().manual_seed(1)
LOGITS = 3 * torch.randn(B, C, generator=G, dtype=torch.float64)
Y_I, Y_J = (torch.randint(C, (B,), generator=G) for _ in range(2))
SHARE = torch.tensor([0.0, 1.0, 0.3, 0.75, 0.5, 0.01], dtype=torch.float64)


def by_loop(smoothing, share):
    """Loss and gradient: p − q, where q is the mixture of the two smoothed targets."""
    loss, gradient = 0.0, torch.zeros(B, C, dtype=torch.float64)
    for b in range(B):
        exps = [math.exp(z) for z in LOGITS[b].tolist()]
        for c in range(C):
            q = smoothing / C
            for y, part in ((Y_I[b], share[b]), (Y_J[b], 1 - share[b])):
                q += (1 - smoothing) * part.item() * (y.item() == c)
            p = exps[c] / sum(exps)
            loss -= q * math.log(p) / B
            gradient[b, c] = (p - q) / B
    return loss, gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_against_a_loop(smoothing, mixed):
    how = {"partners": Y_J, "shares": SHARE} if mixed else {}
    found = evaluate("ce", {"label_smoothing": smoothing}, student={"logits": LOGITS}, targets=Y_I, **how)
    loss, gradient = by_loop(smoothing, SHARE if mixed else torch.ones(B))
    assert found.loss.item() == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(found.gradients["logits"], gradient, rtol=1e-10, atol=1e-14)


def test_in_float32():
    found = evaluate("ce", student={"logits": LOGITS.float()}, targets=Y_I, partners=Y_J, shares=SHARE.float())
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(by_loop(0.0, SHARE)[0], rel=1e-5)
