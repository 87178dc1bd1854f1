"""A first-party file, copied out, is a plugin of one's own: it uses the same road."""

import shutil

import pytest
import torch

from kdray.loader import load_plugins
from kdray.registry import Registry
from kdray.testing import evaluate
from tests.conftest import ROOT

CASES = {
    "ce": dict(student={"logits": torch.linspace(-1, 1, 12).view(4, 3).double()}),
    "kd": dict(
        student={"logits": torch.linspace(-1, 1, 12).view(4, 3).double()},
        teacher={"logits": torch.linspace(2, -1, 12).view(4, 3).double()},
    ),
    "crd": dict(
        student={"embedding": torch.linspace(-1, 1, 12).view(4, 3).double().cos()},
        teacher={"embedding": torch.linspace(2, -1, 20).view(4, 5).double().sin()},
        num_samples=30,
        num_classes=3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_copied_file_gives_the_same_numbers(name, tmp_path, monkeypatch):
    options = {"negatives": {"kind": "bank", "count": 8}} if name == "crd" else {}
    targets = torch.tensor([0, 1, 2, 1])
    ours = evaluate(name, options, targets=targets, **CASES[name])
    shutil.copy(ROOT / "plugins" / f"{name}.py", tmp_path / f"mine_{name}.py")
    copied = Registry(load_plugins(paths=[tmp_path / f"mine_{name}.py"], blocked=[f"kdray:{name}"]))
    assert copied.owners["distillers", name][0].name == f"mine_{name}"
    monkeypatch.setattr(Registry, "default", classmethod(lambda cls: copied))
    theirs = evaluate(name, options, targets=targets, **CASES[name])
    assert theirs.loss == ours.loss and theirs.loss.requires_grad is False
    assert theirs.gradients.keys() == ours.gradients.keys() and ours.gradients
    for key, gradient in ours.gradients.items():
        assert torch.equal(theirs.gradients[key], gradient)
