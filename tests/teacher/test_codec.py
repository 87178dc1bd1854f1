"""What a stored form keeps of an answer."""

import math

import pytest
import torch
from safetensors.torch import load_file

from kdray.errors import ConfigError
from kdray.teacher.codec import DTYPES, Codec
from kdray.teacher.shard import pack

X = 6 * torch.randn(50, 12, generator=torch.Generator().manual_seed(0))


def there_and_back(codec: Codec, x=X, output="logits", dtype=torch.float32) -> torch.Tensor:
    return codec.decode(output, codec.encode(output, x), x.shape[1], dtype)


@pytest.mark.parametrize("output", ["logits", "embedding"])
def test_fp32_is_exact(output):
    assert torch.equal(there_and_back(Codec("fp32"), output=output), X)


@pytest.mark.parametrize("dtype, bits", [("fp16", 11), ("bf16", 8)])
def test_half_precision_rounds_to_the_nearest(dtype, bits):
    found = there_and_back(Codec(dtype))
    error = ((found - X) / X).abs().max()
    assert 2.0 ** -(bits + 3) < error <= 2.0**-bits  # rounded, and not truncated: that would reach 2^(1 − bits)
    assert found.dtype == torch.float32 and not torch.equal(found, X)


def test_an_answer_comes_in_the_dtype_of_the_losses():
    x = X.double()
    assert torch.equal(there_and_back(Codec("fp32"), x, dtype=torch.float64), x.float().double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 4, 11])
def test_top_k_in_plain_loops(dtype, k):
    found = there_and_back(Codec(dtype, k))
    for row, given in zip(found.tolist(), X.tolist()):
        order = sorted(range(12), key=lambda c: -given[c])
        stored = {c: float(torch.tensor(given[c]).to(DTYPES[dtype])) for c in order[:k]}
        rest = math.log(sum(math.exp(given[c]) for c in order[k:]))
        each = float(torch.tensor(rest).to(DTYPES[dtype])) - math.log(12 - k)
        for c in range(12):
            # float32's epsilon: rest is a sum of float32, whose rounding may go to the next number of the dtype.
            loose = 0 if c in stored else 2 * torch.finfo(DTYPES[dtype]).eps * max(1, abs(rest))
            assert abs(row[c] - stored.get(c, each)) <= loose


@pytest.mark.parametrize("k", [1, 4, 11])
def test_top_k_keeps_the_probabilities_of_the_k(k):
    """At temperature 1, since the mass of the rest is kept; at others it is not."""
    found, top = there_and_back(Codec("fp32", k)), X.topk(k, dim=1).indices
    for temperature, kept in ((1.0, True), (4.0, k == 11)):
        before, after = ((x.double() / temperature).softmax(1).gather(1, top) for x in (X, found))
        assert (before - after).abs().max().item() < 1e-6 if kept else (before - after).abs().max().item() > 1e-3


def test_the_embedding_is_whole_beside_the_largest_logits():
    assert torch.equal(there_and_back(Codec("fp32", 3), output="embedding"), X)


@pytest.mark.parametrize("classes, kind", [(256, torch.uint8), (257, torch.int16), (2**15, torch.int16)])
@pytest.mark.parametrize("last", [True, False])
def test_indices_are_as_small_as_the_classes_allow(classes, kind, last):
    x = torch.zeros(1, classes)
    best = classes - 1 if last else 0
    x[0, best] = 9.0
    codec = Codec("fp32", 1)
    assert codec.encode("logits", x)["indices"].dtype == kind
    found = there_and_back(codec, x)
    assert found.argmax() == best and found[0, best] == 9.0


def test_indices_of_very_many_classes():
    assert Codec("fp32", 1).encode("logits", torch.zeros(1, 2**15 + 1))["indices"].dtype == torch.int32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("output, width", [("logits", 10), ("logits", 1000), ("embedding", 64)])
def test_bytes_are_those_of_the_file(tmp_path, dtype, top_k, output, width):
    import numpy as np

    codec, rows = Codec(dtype, top_k), 40
    parts = codec.encode(output, torch.randn(rows, width))
    sizes = []
    for first in (0, 90):  # on one page of 100 samples, and on two: each row then also names its page
        keys = np.arange(first, first + rows)
        name, data = pack(keys, parts, samples=100)
        (tmp_path / name).write_bytes(data)
        sizes.append(sum(x.nbytes for x in load_file(tmp_path / name).values()))
    assert sizes == [rows * (codec.bytes(output, width) + 4), rows * (codec.bytes(output, width) + 8)]


@pytest.mark.parametrize(
    "codec, x, says",
    [
        (Codec("fp16"), [[1e5, 0.0]], r"logits reach 1e\+05, more than fp16 can hold: set teacher.cache.dtype to bf16"),
        (Codec("fp16", 1), [[0.0, -1e5]], r"reach 1e\+05, more than fp16 can hold"),
        (Codec("fp32"), [[math.nan, 0.0]], "the teacher's logits are not finite"),
        (Codec("fp32", 1), [[math.nan, 0.0, 1.0]], "not finite"),
        (Codec("bf16"), [[math.inf, 0.0]], "not finite"),
        (Codec("fp32", 2), [[1.0, 0.0]], "top_k is 2, and there are 2 classes: give fewer, or leave top_k out"),
        (Codec("fp32", 3), [[1.0, 0.0]], "top_k is 3, and there are 2 classes"),
    ],
)
def test_what_cannot_be_stored(codec, x, says):
    with pytest.raises(ConfigError, match=says):
        codec.encode("logits", torch.tensor(x))


def test_bf16_holds_what_fp16_cannot():
    assert there_and_back(Codec("bf16"), torch.tensor([[1e5, -1e30]])).tolist()[0] == pytest.approx(
        [1e5, -1e30], rel=4e-3
    )
