"""The reference numbers of the losses, in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from kdray.distiller import Batch, Outputs, Setup, Shapes, Step
from kdray.registry import Registry
from kdray.testing import evaluate

GOLDEN = Path(__file__).parent.parent / "golden"


class Golden:
    def __init__(self, which):
        self.arrays = np.load(GOLDEN / f"losses_{which}.npz")

    def __getitem__(self, name):
        return torch.from_numpy(self.arrays[name])


@pytest.fixture(params=["a", "b"])
def golden(request):
    return Golden(request.param)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("temperature", [1, 4])
def test_kd(golden, temperature):
    result = evaluate(
        "kd",
        {"temperature": temperature},
        student={"logits": golden["student_logits"]},
        teacher={"logits": golden["teacher_logits"]},
        targets=golden["targets"],
    )
    close(result.loss, golden[f"kd_T{temperature}/loss"])
    close(result.gradients["logits"], golden[f"kd_T{temperature}/grad_0"])


class Given(torch.nn.Module):
    """Draws what the reference drew."""

    def forward(self, batch, step):
        return self.indices


def run_crd(golden, memory_s, memory_t):
    """Our two steps from the given banks: everything the reference recorded, by its name."""
    count, temperature, momentum = golden["crd/hyper"].tolist()
    spec = Registry.default().get("distillers", "crd")
    options = spec.cls.Options(
        dim=memory_s.shape[1],
        temperature=temperature,
        negatives={"kind": "bank", "count": int(count), "momentum": momentum},
    )
    labels = torch.arange(len(memory_s)) % 4
    wide_s, wide_t = golden["crd/embed_s_weight"].shape[1:], golden["crd/embed_t_weight"].shape[1:]
    shapes = Shapes(embedding=wide_s), Shapes(embedding=wide_t)
    crd = spec.cls(options, Setup(*shapes, 4, len(memory_s), labels, torch.Generator())).double()
    heads = {f"embed_{side}.{kind}": golden[f"crd/embed_{side}_{kind}"] for side in "st" for kind in ("weight", "bias")}
    crd.load_state_dict(heads | {"contrast.memory_s": memory_s, "contrast.memory_t": memory_t}, strict=False)
    crd.contrast.draw = given = Given()
    found = {}
    for number in (0, 1):
        prefix = f"crd/step{number}/"
        index, contrast = golden[prefix + "index"], golden[prefix + "contrast_index"]
        assert torch.equal(contrast[:, 0], index)
        given.indices = contrast[:, 1:]
        embedding = golden[prefix + "student_embedding"].requires_grad_()
        teacher = Outputs(embedding=golden[prefix + "teacher_embedding"])
        batch = Batch(index=index, target=labels[index], size=len(index))
        step = Step(number, 0, torch.Generator())
        loss = crd(Outputs(embedding=embedding), teacher, batch, step)
        crd.zero_grad()
        loss.backward()
        crd.after_backward(batch, step)
        found[prefix + "loss"] = loss.detach()
        found[prefix + "grad_student_embedding"] = embedding.grad
        found[prefix + "grad_embed_s_weight"] = crd.embed_s.weight.grad.clone()
        found[prefix + "grad_embed_t_weight"] = crd.embed_t.weight.grad.clone()
        found[prefix + "z_s"], found[prefix + "z_t"] = crd.z_s.clone(), crd.z_t.clone()
    found["crd/step1/memory_s_after"] = crd.contrast.memory_s.clone()
    found["crd/step1/memory_t_after"] = crd.contrast.memory_t.clone()
    return found


def initial_bank(golden, side, scales):
    """A bank that two updates turn into the recorded one.

    The file's `memory_*_initial` and step 0's `memory_*_after` are equal to the bank after step 1: they were recorded
    after both updates. A row written once came from 2 s · row − g, a row written twice from the same rule applied
    twice, each with an unknown length s; other rows never changed. Of the second rule one length is known: the bank's
    rows have length 1 after an update.
    """
    bank = golden[f"crd/step1/memory_{side}_after"].clone()
    name = {"s": "student", "t": "teacher"}[side]
    weight, bias = golden[f"crd/embed_{side}_weight"], golden[f"crd/embed_{side}_bias"]
    first, second = (golden[f"crd/step{n}/index"].tolist() for n in (0, 1))
    fresh = [
        torch.nn.functional.normalize(golden[f"crd/step{n}/{name}_embedding"] @ weight.T + bias, dim=1) for n in (0, 1)
    ]
    scales = iter(scales)
    for row in sorted({*first, *second}):
        if row in first and row in second:
            g, m = fresh[1][second.index(row)], bank[row]
            # |2 s m − g| = 1 with |m| = |g| = 1: s = m · g
            bank[row] = 2 * (m @ g) * m - g
        g = fresh[0][first.index(row)] if row in first else fresh[1][second.index(row)]
        bank[row] = 2 * next(scales) * bank[row] - g
    return bank


def test_crd_two_steps_banks_and_constants(golden):
    """Two CRD steps: losses, gradients, constants and the final banks, some 900 numbers.

    The 14 lengths a bank that the recording lost (see `initial_bank`) are fitted; were the method another one, no 28
    numbers would make the other hundreds agree to 1e-6.
    """
    rows = len({*golden["crd/step0/index"].tolist(), *golden["crd/step1/index"].tolist()})

    def ours(scales):
        return run_crd(golden, initial_bank(golden, "s", scales[:rows]), initial_bank(golden, "t", scales[rows:]))

    def difference(scales):
        found = ours(torch.from_numpy(scales))
        return torch.cat([((found[k] - golden[k]) / golden[k].abs().max()).flatten() for k in found]).numpy()

    fit = least_squares(difference, np.full(2 * rows, 0.7), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    found = ours(torch.from_numpy(fit.x))
    assert sum(x.numel() for x in found.values()) > 20 * len(fit.x)
    for name, value in found.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
