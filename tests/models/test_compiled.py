"""Compiled networks answer as they do uncompiled, each with its own taps."""

import pytest
import torch

from kdray.config.schema import ModelConfig
from kdray.models.build import build_model
from kdray.models.taps import Tapped
from kdray.registry import Registry

WANTS = [{"logits"}, {"logits", "embedding"}, {"logits", "embedding", "features", "preactivations"}]


def tapped(wants):
    torch.manual_seed(0)
    built = build_model(ModelConfig(model="convnet", widths=[4, 8]), Registry.default(), 10, 1)
    return Tapped(built.model, built.layers, wants)


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch):
    """All of torch.compile but the machine code."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="aot_eager", **options))
    yield
    torch._dynamo.reset()


def test_networks_of_one_kind_keep_their_own_taps():
    x = torch.randn(4, 1, 8, 8)
    for wants in WANTS:
        plain, compiled = tapped(wants), tapped(wants)
        compiled.compile_for(4)
        for _ in range(2):
            expected, found = plain(x), compiled(x)
            assert torch.allclose(expected.logits, found.logits, atol=1e-6)
            if "embedding" in wants:
                assert torch.allclose(expected.embedding, found.embedding, atol=1e-6)
            assert len(found.features) == len(expected.features)
            for a, b in zip(expected.features + expected.preactivations, found.features + found.preactivations):
                assert torch.allclose(a, b, atol=1e-6)
        for network in (plain, compiled):
            outputs = network(x)
            (outputs.logits.sum() + (outputs.embedding.sum() if "embedding" in wants else 0)).backward()
        for p, q in zip(plain.parameters(), compiled.parameters()):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-5)


def test_other_batches_and_what_is_saved_stay_as_they_are():
    network, plain = tapped({"logits"}), tapped({"logits"})
    network.compile_for(4)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(network(torch.ones(3, 1, 8, 8)).logits, plain(torch.ones(3, 1, 8, 8)).logits)
