"""Linear centred kernel alignment (CKA; Kornblith et al., ICML 2019): how alike two layers arrange the same pictures.

HSIC is the unbiased estimator of Song et al. (JMLR 2012), as Nguyen et al. (ICLR 2021) take it: of few pictures and
many features, the plain one calls any two layers alike.
"""

from __future__ import annotations

from torch import Tensor

LEAST = 4
"""Pictures of which there is an unbiased estimate."""


def centred_gram(features: Tensor) -> Tensor:
    """(n, n), fp64: products of the rows of (n, D), U-centred: its diagonal is 0, and its rows and columns sum to 0."""
    x = features - features.mean(0)  # which changes nothing but the rounding
    gram = (x @ x.mT).double().fill_diagonal_(0)
    n, sums = len(gram), gram.sum(0)
    gram = gram - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0)


def cka(a: Tensor, b: Tensor) -> float:
    """Of two layers' `centred_gram`: 1 of the same arrangement, up to rotation and scale; about 0 of unrelated ones,
    and below by chance; nan where a layer tells no picture from another."""
    # The unbiased HSIC is sum(a * b) / (n (n - 3)).
    return float((a * b).sum() / (a.norm() * b.norm()))
