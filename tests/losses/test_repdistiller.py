"""RepDistiller's methods: the reference numbers, and loops over samples where there are none."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdray.distiller import Batch, Outputs, Setup, Shapes, Step
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.testing import evaluate
from tests.conftest import ROOT

GOLDEN = {which: np.load(ROOT / "tests" / "golden" / f"losses_{which}.npz") for which in "ab"}
MAPS = (0, 1, 2)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


class Golden:
    def __init__(self, which):
        self.arrays = GOLDEN[which]

    def __getitem__(self, name):
        return torch.from_numpy(self.arrays[name])

    def maps(self, name):
        return [self[f"{name}_{i}"] for i in MAPS]

    def check(self, name, found, *places):
        close(found.loss, self[f"{name}/loss"])
        for j, place in enumerate(places):
            close(found.gradients[place], self[f"{name}/grad_{j}"])


@pytest.fixture(params=["a", "b"])
def golden(request):
    return Golden(request.param)


def features(maps):
    return {"features": maps}


def embedding(x):
    return {"embedding": x}


PLACES = [f"features.{i}" for i in MAPS]


@pytest.mark.parametrize("name, reference", [("at", "attention"), ("sp", "similarity"), ("nst", "nst")])
def test_losses_of_all_maps(golden, name, reference):
    s, t = features(golden.maps("student_map")), features(golden.maps("teacher_map"))
    found = evaluate(name, {"maps": MAPS}, student=s, teacher=t, targets=golden["targets"])
    golden.check(reference, found, *PLACES)


@pytest.mark.parametrize("name", ["rkd", "pkt"])
def test_losses_of_embeddings(golden, name):
    s, t = embedding(golden["student_embedding"]), embedding(golden["teacher_embedding"])
    golden.check(name, evaluate(name, student=s, teacher=t, targets=golden["targets"]), "embedding")


def test_cc_as_published(golden):
    s, t = embedding(golden["student_embedding_same"]), embedding(golden["teacher_embedding_same"])
    wide = s["embedding"].shape[1]
    heads = {f"embed_{side}.weight": torch.eye(wide) for side in "st"}
    heads |= {f"embed_{side}.bias": torch.zeros(wide) for side in "st"}
    found = evaluate("cc", {"dim": wide}, student=s, teacher=t, targets=golden["targets"], state=heads)
    golden.check("correlation_on_embeddings", found, "embedding")


def test_hint(golden):
    s, t = features([golden["student_map_same_1"]]), features([golden["teacher_map_1"]])
    options = {"layer": 0, "regressor": "none"}
    golden.check("hint_mse", evaluate("hint", options, student=s, teacher=t, targets=golden["targets"]), "features.0")


def test_ab(golden):
    s, t = ({"preactivations": golden.maps(f"{side}")} for side in ("student_map_same", "teacher_map"))
    found = evaluate("ab", {"maps": MAPS}, student=s, teacher=t, targets=golden["targets"], stage="init")
    golden.check("activation_boundary", found, *(f"preactivations.{i}" for i in MAPS))


def test_ft_on_factors(golden):
    s, t = features([golden["student_map_same_2"]]), features([golden["teacher_map_2"]])
    found = evaluate("ft", {"factors": "maps"}, student=s, teacher=t, targets=golden["targets"])
    golden.check("factor_on_factors", found, "features.0")


def test_fsp(golden):
    s, t = features(golden.maps("student_map_same")), features(golden.maps("teacher_map"))
    found = evaluate("fsp", student=s, teacher=t, targets=golden["targets"], stage="init")
    golden.check("fsp", found, *PLACES)


def test_vid(golden):
    s, t = features([golden["student_map_1"]]), features([golden["teacher_map_1"]])
    state = {f"regressors.0.{2 * i}.weight": golden[f"vid/regressor_{i}_weight"] for i in range(3)}
    state["log_scale.0"] = golden["vid/log_scale"]
    found = evaluate("vid", {"maps": (0,)}, student=s, teacher=t, targets=golden["targets"], state=state)
    golden.check("vid", found, "features.0")
    assert found.gradients["log_scale.0"].abs().min() > 0  # the variances train


# What the reference does not have: loops.

B, TARGETS = 5, torch.tensor([0, 1, 2, 1, 0])


def draw(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, *shape, generator=g, dtype=torch.float64) for shape in shapes]


def check(found, expected, leaves):
    """`found` against the loops' loss and its gradients with respect to `leaves`, by place."""
    close(found.loss, expected.detach())
    for (place, _), gradient in zip(leaves.items(), torch.autograd.grad(expected, list(leaves.values()))):
        torch.testing.assert_close(found.gradients[place], gradient, rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize("gamma, order", [(0.4, 2), (1.5, 4)])
def test_cc_of_the_paper(gamma, order):
    (e_s,), (e_t,) = draw((6,)), draw((9,), seed=1)
    options = {"form": "paper", "gamma": gamma, "order": order}
    found = evaluate("cc", options, student=embedding(e_s), teacher=embedding(e_t), targets=TARGETS)
    assert not [k for k in found.state]

    def kernel(x, y):
        cosine = sum(a * b for a, b in zip(x, y)) / (x.norm() * y.norm())
        return sum(math.exp(-2 * gamma) * (2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))

    e_s.requires_grad_()
    loss = 0
    for i in range(B):
        for j in range(B):
            loss = loss + (kernel(e_s[i], e_s[j]) - kernel(e_t[i], e_t[j])) ** 2 / B**2
    check(found, loss, {"embedding": e_s})


def test_cc_of_the_paper_tends_to_the_gaussian_kernel():
    (e,) = draw((6,))
    zero = torch.zeros_like(e)
    options = {"form": "paper", "gamma": 0.7, "order": 30}
    loss = evaluate("cc", options, student=embedding(e), teacher=embedding(zero), targets=TARGETS).loss
    x = F.normalize(e, dim=1)
    gauss = torch.exp(-0.7 * torch.cdist(x, x).square())
    close(loss, (gauss - math.exp(-1.4)).square().mean())


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("size", [(4, 4), (2, 2)])  # more and fewer positions than channels
def test_kdsvd(rank, size):
    shapes = [(5, 2 * size[0], 2 * size[1]), (7, *size), (6, *size)]
    s, t = draw(*shapes), draw(*shapes, seed=1)
    found = evaluate("kdsvd", {"maps": MAPS, "rank": rank}, student=features(s), teacher=features(t), targets=TARGETS)

    def vectors(f_s, f_t):
        _, _, v_s = torch.linalg.svd(f_s.flatten(1).T, full_matrices=False)
        _, sigma, v_t = torch.linalg.svd(f_t.flatten(1).T, full_matrices=False)
        sigma, chosen_s, chosen_t = sigma[:rank] / sigma[:rank].norm(), [], []
        for m in range(rank):
            v = v_t[m] if v_t[m].sum() >= 0 else -v_t[m]
            cosines = [float(w.detach() @ v) for w in v_s[: rank + 3]]
            best = max(range(len(cosines)), key=lambda n: abs(cosines[n]))
            chosen_s.append(v_s[best] * math.copysign(1, cosines[best]) * sigma[m])
            chosen_t.append(v * sigma[m])
        return chosen_s, chosen_t

    s = [x.requires_grad_() for x in s]
    loss = 0
    for b in range(B):
        found_before = None
        for f_s, f_t in zip(s, t):
            now = vectors(f_s[b], f_t[b])
            if found_before:
                for m in range(rank):
                    r_s, r_t = (
                        torch.exp(-((v[m][:, None] - w[m][None, :]) ** 2) / 8) for v, w in zip(now, found_before)
                    )
                    loss = loss + (r_s - r_t).square().sum() / B
            found_before = now
    check(found, loss, dict(zip(PLACES, s)))


def test_kdsvd_of_maps_of_low_rank_is_finite():
    (f,) = draw((6, 3, 3))
    flat = torch.zeros_like(f)
    flat[:, 0] = 1  # rank one
    maps = [flat, f.relu(), torch.zeros_like(f)]
    found = evaluate("kdsvd", {"maps": MAPS}, student=features(maps), teacher=features(maps[::-1]), targets=TARGETS)
    assert found.loss.isfinite() and all(g.isfinite().all() for g in found.gradients.values())


@pytest.mark.parametrize("p", [1.0, 4.0])
def test_at_of_another_power(p):
    (f_s,), (f_t,) = draw((3, 2, 2)), draw((4, 2, 2), seed=1)
    options = {"p": p, "maps": (0,)}
    found = evaluate("at", options, student=features([f_s]), teacher=features([f_t]), targets=TARGETS)

    def attention(f):
        q = torch.stack([sum(abs(f[c, i, j]) ** p for c in range(len(f))) for i in (0, 1) for j in (0, 1)])
        return q / q.norm()

    f_s.requires_grad_()
    loss = sum((attention(a) - attention(b)).square().sum() / 4 for a, b in zip(f_s, f_t)) / B
    check(found, loss, {"features.0": f_s})


def test_rkd_factors_scale_their_terms():
    (e_s,), (e_t,) = draw((4,)), draw((6,), seed=1)
    given = dict(student=embedding(e_s), teacher=embedding(e_t), targets=TARGETS)
    one = evaluate("rkd", {"distance": 1.0, "angle": 1.0}, **given).terms
    terms = evaluate("rkd", **given).terms
    close(terms["distance"], 25 * one["distance"])
    close(terms["angle"], 50 * one["angle"])


def test_ab_margin_connectors_and_layer_factors():
    shapes_s, shapes_t = [(2, 4, 4), (3, 4, 4), (3, 2, 2)], [(2, 4, 4), (5, 4, 4), (4, 4, 4)]
    s, t = draw(*shapes_s), draw(*shapes_t, seed=1)
    maps = {"preactivations": s}, {"preactivations": t}
    options = {"margin": 0.5, "maps": MAPS}
    found = evaluate("ab", options, student=maps[0], teacher=maps[1], targets=TARGETS, stage="init")
    p = {k: v.clone().requires_grad_() for k, v in found.state.items() if v.is_floating_point() and "running" not in k}
    s = [x.requires_grad_() for x in s]
    convs = [None, F.conv2d, lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1)]
    loss = 0
    for i, conv in enumerate(convs):
        z = s[i]
        if conv:
            z = conv(z, p[f"connectors.{i}.0.weight"], p[f"connectors.{i}.0.bias"])
            center = z - z.mean(dim=(0, 2, 3), keepdim=True)
            z = center / (center.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
            z = z * p[f"connectors.{i}.1.weight"][:, None, None] + p[f"connectors.{i}.1.bias"][:, None, None]
        for z_s, z_t in zip(z.flatten(), t[i].flatten()):
            short = 0.5 - z_s if z_t > 0 else 0.5 + z_s
            if short > 0:
                loss = loss + (0.25, 0.5, 1)[i] * 0.003 / B * short**2
    leaves = {f"preactivations.{i}": x for i, x in enumerate(s)}
    leaves |= {k: v for k, v in p.items() if k.endswith("weight")}
    check(found, loss, leaves)


@pytest.mark.parametrize("shape_s, shape_t", [((3, 4, 4), (5, 2, 2)), ((3, 2, 2), (5, 4, 4)), ((3, 4, 4), (5, 3, 3))])
@pytest.mark.parametrize("kind", ["conv_bn_relu", "conv_relu"])
def test_hint_regressors(kind, shape_s, shape_t):
    (f_s,), (f_t,) = draw(shape_s), draw(shape_t, seed=1)
    options = {"layer": 0, "regressor": kind}
    found = evaluate("hint", options, student=features([f_s]), teacher=features([f_t]), targets=TARGETS)
    w, b = found.state["regressor.0.weight"], found.state["regressor.0.bias"]
    if shape_t[1] == 4:
        y = F.conv_transpose2d(f_s.requires_grad_(), w, b, stride=2, padding=1)
    else:
        down = {2: dict(stride=2, padding=1), 3: {}}[shape_t[1]]
        y = F.conv2d(f_s.requires_grad_(), w, b, **down)
    if kind == "conv_bn_relu":
        y = F.batch_norm(y, None, None, training=True)
    check(found, (y.relu() - f_t).square().mean(), {"features.0": f_s})


def test_hint_in_two_stages_has_no_hint_in_the_main_loop():
    (f_s,), (f_t,) = draw((3, 4, 4)), draw((5, 4, 4), seed=1)
    given = dict(student=features([f_s]), teacher=features([f_t]), targets=TARGETS)
    joint = evaluate("hint", {"layer": 0}, **given)
    staged = {"layer": 0, "init_epochs": 3}
    first = evaluate("hint", staged, stage="hint", **given)
    assert first.loss == joint.loss and first.gradients.keys() == joint.gradients.keys()
    assert evaluate("hint", staged, **given).terms == {}
    with pytest.raises(ConfigError, match="no stage"):
        evaluate("hint", {"layer": 0}, stage="hint", **given)


def build(name, student, teacher, **options):
    cls = Registry.default().get("distillers", name).cls
    setup = Setup(Shapes(**student), Shapes(**teacher), 3, 9, torch.arange(9) % 3, torch.Generator())
    return cls(cls.Options(**options), setup)


def test_stages_name_what_trains_in_them():
    maps = ((2, 4, 4), (3, 4, 4))
    wide = ((2, 4, 4), (5, 4, 4))
    ab = build("ab", {"preactivations": maps}, {"preactivations": wide})
    (stage,) = ab.stages()
    assert (stage.epochs, stage.student, stage.lr, stage.modules) == (30, True, None, (ab.connectors,))
    ft = build("ft", features(maps), features(wide))
    (stage,) = ft.stages()
    assert (stage.epochs, stage.student, stage.lr, stage.modules) == (30, False, 0.01, (ft.paraphraser,))
    hint = build("hint", features(maps), features(wide), layer=1, init_epochs=7)
    (stage,) = hint.stages()
    assert (stage.epochs, stage.student, stage.modules) == (7, True, (hint.regressor,))
    (stage,) = build("fsp", features(maps), features(maps), init_epochs=2).stages()
    assert (stage.epochs, stage.student, stage.modules) == (2, True, ())
    for name, kind in (("ab", "preactivations"), ("fsp", "features")):
        given = {kind: draw(*maps)}
        assert evaluate(name, student=given, teacher=given, targets=TARGETS).terms == {}


def code(conv, x, state, name, places):
    for i in places:
        x = F.leaky_relu(conv(x, state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"], padding=1), 0.1)
    return x


def test_ft_learns_to_paraphrase_the_teacher_first():
    (f_t,) = draw((6, 4, 4))
    found = evaluate(
        "ft", {"rate": 0.5}, student=features([f_t]), teacher=features([f_t]), targets=TARGETS, stage="paraphraser"
    )
    factor = code(F.conv2d, f_t, found.state, "paraphraser.encoder", (0, 2, 4))
    again = code(F.conv_transpose2d, factor, found.state, "paraphraser.decoder", (0, 2, 4))
    assert factor.shape[1] == 3
    close(found.loss, (again - f_t).square().mean())
    assert {k.split(".")[0] for k in found.gradients} == {"paraphraser"}


@pytest.mark.parametrize("p1, p2", [(2.0, 1.0), (1.0, 2.0)])
def test_ft_compares_the_translation_with_the_code(p1, p2):
    (f_s,), (f_t,) = draw((4, 4, 4)), draw((6, 2, 2), seed=1)
    given = dict(student=features([f_s]), teacher=features([f_t]), targets=TARGETS)
    found = evaluate("ft", {"p1": p1, "p2": p2}, **given)
    y = f_s.requires_grad_()
    for i in (0, 3, 6):
        y = F.conv2d(y, found.state[f"translator.{i}.weight"], found.state[f"translator.{i}.bias"], padding=1)
        y = F.leaky_relu(F.batch_norm(y, None, None, training=True), 0.1)
    z = code(F.conv2d, f_t, found.state, "paraphraser.encoder", (0, 2, 4))
    y = F.avg_pool2d(y, 2)
    loss = 0
    for a, b in zip(y, z):
        a, b = (x.abs().pow(p1).sum(dim=0).flatten() for x in (a, b))
        loss = loss + (a / a.norm() - b / b.norm()).abs().pow(p2).sum() / 4 / B
    check(found, loss, {"features.0": f_s})
    assert not [k for k in found.gradients if k.startswith("paraphraser")]


RELATIONAL = [("sp", {}), ("cc", {"dim": 3}), ("cc", {"form": "paper"}), ("rkd", {}), ("pkt", {})]


@pytest.mark.parametrize("name, options", RELATIONAL)
@pytest.mark.parametrize("case", ["one row", "equal rows", "zeros", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relational_losses_stay_finite(name, options, case, dtype):
    (x,) = draw((6,))
    x = {"one row": x[:1], "equal rows": x[:1].repeat(4, 1), "zeros": 0 * x, "large": 1e6 * x}[case].to(dtype)
    both = {"embedding": x, "features": [x[:, :, None, None]]}
    found = evaluate(name, options, student=both, teacher=both, targets=TARGETS[: len(x)])
    assert found.loss.isfinite() and all(g.isfinite().all() for g in found.gradients.values())


def test_rkd_in_float32_far_from_the_origin():
    (e_s,), (e_t,) = draw((16,)), draw((16,), seed=1)
    both = dict(targets=TARGETS)
    exact = evaluate("rkd", student=embedding(e_s + 100), teacher=embedding(e_t - 100), **both)
    single = evaluate("rkd", student=embedding((e_s + 100).float()), teacher=embedding((e_t - 100).float()), **both)
    torch.testing.assert_close(single.loss.double(), exact.loss, rtol=1e-4, atol=0)
    near = evaluate("rkd", student=embedding(e_s), teacher=embedding(e_t), **both)
    torch.testing.assert_close(exact.loss, near.loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name, options", RELATIONAL)
def test_relational_losses_of_two_workers(name, options):
    """Each worker's own value, weighted by its rows, is the loss of the global batch."""
    (x_s,), (x_t,) = draw((6,)), draw((7,), seed=1)
    distiller = build(
        name, {"embedding": (6,), "features": ((6, 1, 1),)}, {"embedding": (7,), "features": ((7, 1, 1),)}, **options
    )
    distiller = distiller.double()

    def loss(rows, gather):
        step = Step(0, 0, torch.Generator(), _gather=gather)
        index = torch.arange(B)[rows]
        batch = Batch(index, TARGETS[rows], offset=int(index[0]), size=B)
        sides = [Outputs(embedding=x[rows], features=[x[rows][:, :, None, None]]) for x in (x_s, x_t)]
        result = distiller(*sides, batch, step)
        return sum(result.values()) if isinstance(result, dict) else result

    def whole(x, differentiable):  # what gathering would give: the same rows, of the whole batch
        if name == "cc" and options.get("dim"):
            return (distiller.embed_s(x_s) - distiller.embed_t(x_t)).abs()
        return x_s if x.shape[1] == 6 else x_t

    parts = [slice(0, 3), slice(3, 5)]
    weighted = sum(loss(rows, whole) * len(range(B)[rows]) / B for rows in parts)
    close(weighted, loss(slice(0, B), None))


@pytest.mark.parametrize("name", ["at", "nst", "vid", "kdsvd", "ab", "fsp"])
def test_maps_are_paired_from_the_deep_end(name):
    kind = "preactivations" if name == "ab" else "features"
    s, t = draw((2, 4, 4), (3, 4, 4), (4, 2, 2)), draw((5, 8, 8), (2, 4, 4), (3, 4, 4), (4, 2, 2), seed=1)
    stage = {"ab": "init", "fsp": "init"}.get(name)
    given = dict(student={kind: s}, teacher={kind: t}, targets=TARGETS, stage=stage)
    first = -3 if name == "fsp" else -2
    assert evaluate(name, **given).loss == evaluate(name, {"maps": tuple(range(first, 0))}, **given).loss
    with pytest.raises(ConfigError, match="maps"):
        evaluate(name, {"maps": (0, 3)}, **given)
    with pytest.raises(ConfigError, match="maps"):
        evaluate(name, student={kind: s[:1]}, teacher={kind: t}, targets=TARGETS)


def test_networks_that_do_not_fit():
    (s,), (t,) = draw((2, 4, 4)), draw((3, 9, 9), seed=1)
    small, large = dict(targets=TARGETS, student=features([s, s])), features([t, t])
    for name, options, what in (
        ("hint", {"layer": 2}, "no map 2"),
        ("hint", {"layer": 0}, "half as large"),
        ("hint", {"layer": 0, "regressor": "none"}, "one shape"),
        ("ft", {"map": 5}, "no map 5"),
        ("sp", {"maps": (2,)}, "share 2"),
        ("fsp", {}, "same"),
        ("kdsvd", {"maps": (0, 1)}, "one width"),
    ):
        with pytest.raises(ConfigError, match=what):
            evaluate(name, options, teacher=large, **small)
    maps = [{"preactivations": [x, x]} for x in (s, t)]
    with pytest.raises(ConfigError, match="half as large"):
        evaluate("ab", student=maps[0], teacher=maps[1], targets=TARGETS)
