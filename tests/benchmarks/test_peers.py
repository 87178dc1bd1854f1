"""The re-created losses of the peers say what kdray's plugins say: the benchmark compares speed, not objectives."""

import pytest
import torch

from kdray.testing import evaluate
from tests.conftest import ROOT

B, SHAPES = 6, ((8, 8, 8), (12, 4, 4), (16, 2, 2))


@pytest.fixture
def losses(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import peers_losses

    return peers_losses


def maps(seed, shapes=SHAPES, low=0.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, *shape, generator=generator, dtype=torch.float64).clamp(min=low) for shape in shapes]


def vectors(seed, width):
    return torch.randn(B, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shapes(f):
    return [x.shape for x in f] if isinstance(f, list) else f.shape


def check(theirs, s, found, places):
    """Value and gradients at s, which requires none yet."""
    s = [x.clone().requires_grad_() for x in s]
    loss = theirs(s)
    loss.backward()
    torch.testing.assert_close(loss.detach(), found.loss, rtol=1e-6, atol=1e-10)
    for x, place in zip(s, places):
        torch.testing.assert_close(x.grad, found.gradients[place], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["at", "nst"])
def test_of_maps(losses, name):
    s, t = maps(1), maps(2)
    found = evaluate(
        name, {"maps": [0, 1, 2]}, student={"features": s}, teacher={"features": t}, targets=torch.arange(B)
    )
    check(lambda s: getattr(losses, name)(s, t), s, found, [f"features.{i}" for i in range(3)])


@pytest.mark.parametrize("name", ["rkd", "pkt"])
def test_of_vectors(losses, name):
    s, t = vectors(1, 10), vectors(2, 14)
    found = evaluate(name, student={"embedding": s}, teacher={"embedding": t}, targets=torch.arange(B))
    check(lambda s: getattr(losses, name)(s[0], t), [s], found, ["embedding"])


def test_sp(losses):
    (s,), (t,) = maps(1)[-1:], maps(2)[-1:]
    found = evaluate("sp", {"maps": [0]}, student={"features": [s]}, teacher={"features": [t]}, targets=torch.arange(B))
    check(lambda s: losses.sp(s[0], t), [s], found, ["features.0"])


def test_kd(losses):
    s, t = vectors(1, 10), vectors(2, 10)
    found = evaluate("kd", student={"logits": s}, teacher={"logits": t}, targets=torch.arange(B))
    check(lambda s: losses.kl(s[0], t), [s], found, ["logits"])


def test_kdsvd(losses, monkeypatch):
    """The peers leave the sign of the teacher's vectors to the routine; kdray's have a positive sum."""
    svd = torch.svd

    def positive(x):
        u, sigma, v = svd(x)
        sign = v.sum(dim=1, keepdim=True).sign()
        return u * sign, sigma, v * sign

    monkeypatch.setattr(torch, "svd", positive)
    s, t = maps(1), maps(2)
    found = evaluate(
        "kdsvd", {"maps": [0, 1, 2]}, student={"features": s}, teacher={"features": t}, targets=torch.arange(B)
    )
    torch.testing.assert_close(losses.kdsvd(s, t), found.loss, rtol=1e-6, atol=1e-10)


def test_cc(losses):
    s, t = vectors(1, 10), vectors(2, 14)
    theirs = losses.CC(s.shape, t.shape, dim=5).double()
    options = {"form": "published", "dim": 5}
    found = evaluate(
        *("cc", options),
        student={"embedding": s},
        teacher={"embedding": t},
        targets=torch.arange(B),
        state=theirs.state_dict(),
    )
    check(lambda s: theirs(s[0], t), [s], found, ["embedding"])


def test_crd(losses):
    """Two steps: Z of the first, banks of both. The draw is taken from kdray's."""
    samples, classes, dim = 60, 4, 5
    from kdray.contrast.draws import OtherClasses
    from kdray.distiller import Batch, Step

    labels = torch.arange(samples) % classes
    theirs = losses.CRD((B, 10), (B, 14), samples, dim=dim).double()
    names = {f"embed_{x}.{p}": f"embed_{x}.linear.{p}" for x in "st" for p in ("weight", "bias")}
    state = {ours: theirs.state_dict()[name] for ours, name in names.items()}
    state |= {f"contrast.memory_{x}": theirs.state_dict()[f"bank_{x}"].clone() for x in "st"}
    for step in range(2):
        s, t, index = vectors(3 * step, 10), vectors(3 * step + 1, 14), torch.arange(B) * 3 + step
        batch = Batch(index=index, target=labels[index], size=B)
        drawn = OtherClasses(16, labels)(
            batch, Step(number=step, epoch=0, generator=torch.Generator().manual_seed(step))
        )
        found = evaluate(
            "crd",
            {"dim": dim, "negatives": {"kind": "bank", "count": 16}},
            student={"embedding": s},
            teacher={"embedding": t},
            targets=labels[index],
            indices=index,
            labels=labels,
            num_samples=samples,
            num_classes=classes,
            state=state,
            step=step,
        )
        met = torch.cat([index[:, None], drawn], dim=1)
        check(lambda s, t=t, index=index, met=met: theirs(s[0], t, index, met), [s], found, ["embedding"])
        state = found.state
        for side in "st":
            torch.testing.assert_close(theirs.state_dict()[f"bank_{side}"], state[f"contrast.memory_{side}"])


def test_fsp(losses):
    s, t = maps(1), maps(2)
    found = evaluate("fsp", student={"features": s}, teacher={"features": t}, targets=torch.arange(B), stage="init")
    check(lambda s: losses.fsp(s, t), s, found, [f"features.{i}" for i in range(3)])


def test_ab(losses):
    s, t = maps(1, low=-9.0), maps(2, low=-9.0)
    theirs = losses.AB(shapes(s), shapes(t)).double()
    found = evaluate(
        "ab",
        {"maps": [0, 1, 2]},
        student={"preactivations": s},
        teacher={"preactivations": t},
        targets=torch.arange(B),
        stage="init",
    )
    check(lambda s: theirs(s, t), s, found, [f"preactivations.{i}" for i in range(3)])


def test_hint(losses):
    (s,), (t,) = maps(1)[:1], maps(2)[1:2]
    theirs = losses.Hint(s.shape, t.shape).double()
    options = {"layer": 0, "regressor": "conv_bn_relu"}
    found = evaluate(
        *("hint", options),
        student={"features": [s]},
        teacher={"features": [t]},
        targets=torch.arange(B),
        state=theirs.state_dict(),
    )
    check(lambda s: theirs(s[0], t), [s], found, ["features.0"])


def test_vid(losses):
    s, t = maps(1), maps(2, ((10, 8, 8), (14, 2, 2), (16, 2, 2)))
    theirs = losses.VID(shapes(s), shapes(t)).double()
    state = {}
    for i, of_map in enumerate(theirs.maps):
        state |= {f"regressors.{i}.{name}": p for name, p in of_map.mean.state_dict().items()}
        state[f"log_scale.{i}"] = of_map.scale.detach()
    found = evaluate(
        *("vid", {"maps": [0, 1, 2]}),
        student={"features": s},
        teacher={"features": t},
        targets=torch.arange(B),
        state=state,
    )
    check(lambda s: theirs(s, t), s, found, [f"features.{i}" for i in range(3)])


def test_ft(losses):
    (s,), (t,) = maps(1)[:1], maps(2)[1:2]
    theirs, before = losses.FT(s.shape, t.shape).double(), losses.Paraphraser(s.shape, t.shape).double()
    theirs.paraphraser = (before.encoder,)
    state = {f"translator.{name}": x for name, x in theirs.translator.state_dict().items()}
    state |= {f"paraphraser.{name}": x for name, x in before.state_dict().items()}
    given = {"student": {"features": [s]}, "teacher": {"features": [t]}, "targets": torch.arange(B), "state": state}
    found = evaluate("ft", {"map": 0}, **given)
    check(lambda s: theirs(s[0], t), [s], found, ["features.0"])
    stage = evaluate("ft", {"map": 0}, **given, stage="paraphraser")
    torch.testing.assert_close(before(s, t).detach(), stage.loss)
