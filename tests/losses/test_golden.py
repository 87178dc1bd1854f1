"""The reference numbers of the losses, in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

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


def test_crd_two_steps_banks_and_constants(golden):
    count, temperature, momentum = golden["crd/hyper"].tolist()
    memory = golden["crd/memory_s_initial"]
    spec = Registry.default().get("distillers", "crd")
    options = spec.cls.Options(
        dim=memory.shape[1], temperature=temperature, negatives={"kind": "bank", "count": int(count), "momentum": momentum}
    )
    labels = torch.arange(len(memory)) % 4
    wide_s, wide_t = golden["crd/embed_s_weight"].shape[1:], golden["crd/embed_t_weight"].shape[1:]
    setup = Setup(Shapes(embedding=wide_s), Shapes(embedding=wide_t), 4, len(memory), labels, torch.Generator())
    crd = spec.cls(options, setup).double()
    crd.load_state_dict(
        {
            "embed_s.weight": golden["crd/embed_s_weight"],
            "embed_s.bias": golden["crd/embed_s_bias"],
            "embed_t.weight": golden["crd/embed_t_weight"],
            "embed_t.bias": golden["crd/embed_t_bias"],
            "contrast.memory_s": memory,
            "contrast.memory_t": golden["crd/memory_t_initial"],
        },
        strict=False,
    )
    crd.contrast.draw = given = Given()
    for number in (0, 1):
        prefix = f"crd/step{number}/"
        index = golden[prefix + "index"]
        contrast = golden[prefix + "contrast_index"]
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
        close(loss.detach(), golden[prefix + "loss"])
        close(embedding.grad, golden[prefix + "grad_student_embedding"])
        close(crd.embed_s.weight.grad, golden[prefix + "grad_embed_s_weight"])
        close(crd.embed_t.weight.grad, golden[prefix + "grad_embed_t_weight"])
        close(crd.contrast.memory_s, golden[prefix + "memory_s_after"])
        close(crd.contrast.memory_t, golden[prefix + "memory_t_after"])
        close(crd.z_s, golden[prefix + "z_s"])
        close(crd.z_t, golden[prefix + "z_t"])
