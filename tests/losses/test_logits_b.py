"""Pairs of classes, regions, transport, views and peers: values and gradients against loops from the formulas."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

from kdray.distiller import Setup, Shapes
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.testing import evaluate

B, C = 5, 4
_G = torch.Generator().manual_seed(0)
TARGETS = torch.tensor([0, 2, 1, 2, 0])  # class 3 is absent


def draw(*shape, scale=2.0):
    return scale * torch.randn(*shape, generator=_G, dtype=torch.float64)


STUDENT, TEACHER = draw(B, C), draw(B, C)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10)


def leaf(x):
    return x.detach().clone().requires_grad_()


def check(result, terms, leaves):
    """Terms by name, and gradients of their sum with respect to `leaves` by place."""
    assert set(result.terms) == set(terms)
    for name, value in terms.items():
        close(result.terms[name], value.detach())
    sum(terms.values()).backward()
    for place, x in leaves.items():
        close(result.gradients[place], torch.zeros_like(x) if x.grad is None else x.grad)
    for place in set(result.gradients) - set(leaves):
        assert not result.gradients[place].any(), f"{place} has a gradient"


def softmax(row, T=1.0):
    """Of one row, as a list of scalars."""
    powers = [torch.exp(z / T) for z in row]
    return [x / sum(powers) for x in powers]


def kl(row_t, row_s, T=1.0):
    return T**2 * sum(a * (a.log() - b.log()) for a, b in zip(softmax(row_t, T), softmax(row_s, T)))


def entropy(p, row_s, T=1.0):
    """Cross-entropy."""
    return -sum(a * b.log() for a, b in zip(p, softmax(row_s, T)))


def without(row, y):
    return [z for k, z in enumerate(row) if k != y]


# IKL


def ikl_loop(z_s, weights, alpha=1.0, beta=16.0, gamma=0.05, T=4.0):
    above = below = cross = 0.0
    for i in range(B):
        for j, k in itertools.product(range(C), repeat=2):
            w = weights[i][j] ** gamma * weights[i][k] ** gamma
            above = above + w * ((TEACHER[i, j] - TEACHER[i, k]) - (z_s[i, j] - z_s[i, k])) ** 2
            below = below + w
        cross = cross + entropy(softmax(TEACHER[i], T), z_s[i], T) / B
    return {"differences": beta / 4 * above / below, "cross_entropy": alpha * cross}


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "beta": 2.0, "gamma": 1.0, "temperature": 2.0}])
def test_ikl_weighs_pairs_by_the_prior_of_the_class(options):
    prior = torch.rand(C, C, generator=_G, dtype=torch.float64)
    result = evaluate(
        "ikl",
        options,
        student={"logits": STUDENT},
        teacher={"logits": TEACHER},
        targets=TARGETS,
        state={"class_prior": prior},
    )
    z, o = leaf(STUDENT), dict(options)
    o["T"] = o.pop("temperature", 4.0)
    check(result, ikl_loop(z, prior[TARGETS], **o), {"logits": z})


def test_ikl_weighs_pairs_by_the_sample():
    result = evaluate(
        "ikl",
        {"prior": "sample", "weight_temperature": 3.0, "gamma": 0.6},
        student={"logits": STUDENT},
        teacher={"logits": TEACHER},
        targets=TARGETS,
    )
    z = leaf(STUDENT)
    check(result, ikl_loop(z, [softmax(row, 3.0) for row in TEACHER], gamma=0.6), {"logits": z})


def test_ikl_prior_is_the_mean_of_the_epoch_before():
    def step(epoch, state=None):
        given = {"student": {"logits": STUDENT}, "teacher": {"logits": TEACHER}, "targets": TARGETS}
        return evaluate("ikl", {}, epoch=epoch, state=state, **given).state

    state = step(0, step(0))
    close(state["class_prior"], torch.full((C, C), 1 / C, dtype=torch.float64))
    state = step(1, state)
    for c in range(C):
        rows = [torch.stack(softmax(TEACHER[i], 4.0)) for i in range(B) if TARGETS[i] == c]
        expected = torch.stack(rows).mean(dim=0) if rows else torch.full((C,), 1 / C, dtype=torch.float64)
        close(state["class_prior"][c], expected)
    before = state["class_prior"]
    close(state["sums"].sum(), torch.tensor(float(B), dtype=torch.float64))  # the second epoch's so far
    close(step(3, step(2, state))["class_prior"], before)  # epochs of the same samples


# SDD


def sdd_base(base, row_s, row_t, y, T, target, others):
    if base == "kd":
        return kl(row_t, row_s, T)
    if base == "dkd":
        a, b = softmax(row_t, T)[y], softmax(row_s, T)[y]
        binary = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
        return T**2 * target * binary + others * kl(without(row_t, y), without(row_s, y), T)
    soft = -softmax(row_t)[y] * softmax(row_s)[y].log()
    return target * soft + others * T**2 * entropy(softmax(without(row_t, y), T), without(row_s, y), T)


@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
@pytest.mark.parametrize("bias", [True, False])
def test_sdd(base, bias):
    scales = [1, 2, 4]
    map_s, map_t = draw(B, 3, 4, 4), draw(B, 6, 8, 8)
    head_s, head_t = (draw(C, 3), draw(C) if bias else None), (draw(C, 6), draw(C) if bias else None)
    logits_t = F.linear(map_t.mean(dim=(2, 3)), *head_t)
    options = {"base": base, "scales": scales, "temperature": 3.0, "complementary": 5.0, "target": 0.7, "others": 1.5}
    result = evaluate(
        "sdd",
        options,
        student={"last_map": map_s, "head": head_s},
        teacher={"last_map": map_t, "head": head_t, "logits": logits_t},
        targets=TARGETS,
        num_classes=C,
    )
    x, weight = leaf(map_s), leaf(head_s[0])
    leaves = {"last_map": x, "head.weight": weight}
    if bias:
        leaves["head.bias"] = leaf(head_s[1])
    losses, kinds = [], set()
    for i, m in itertools.product(range(B), scales):
        y, right = int(TARGETS[i]), int(logits_t[i].argmax()) == TARGETS[i]
        for row, column in itertools.product(range(m), repeat=2):
            # The mean of the logits of the region's positions.
            rows = []
            for maps, w, b in ((x, weight, leaves.get("head.bias")), (map_t, *head_t)):
                n, positions = maps.shape[-1] // m, []
                for h, v in itertools.product(range(row * n, row * n + n), range(column * n, column * n + n)):
                    logits = [(w[c] * maps[i, :, h, v]).sum() + (b[c] if b is not None else 0) for c in range(C)]
                    positions.append(torch.stack(logits))
                rows.append(sum(positions) / len(positions))
            agrees = (int(rows[1].argmax()) == y) == right
            kinds.add((bool(agrees), bool(right)))
            losses.append((1.0 if agrees else 5.0) * sdd_base(base, *rows, y, 3.0, 0.7, 1.5))
    assert len(kinds) == 4
    check(result, {"": sum(losses) / len(losses)}, leaves)


def test_sdd_at_scale_1_is_its_base():
    map_s, map_t, head_s, head_t = draw(B, 3, 2, 2), draw(B, 3, 2, 2), (draw(C, 3), draw(C)), (draw(C, 3), None)
    logits_s, logits_t = F.linear(map_s.mean(dim=(2, 3)), *head_s), F.linear(map_t.mean(dim=(2, 3)), *head_t)
    given = {"teacher": {"last_map": map_t, "head": head_t, "logits": logits_t}, "targets": TARGETS, "num_classes": C}
    student = {"last_map": map_s, "head": head_s}
    found = {
        base: evaluate("sdd", {"base": base, "scales": [1]}, student=student, **given).loss for base in ("kd", "dkd")
    }
    for base, loss in found.items():
        alone = evaluate(base, {}, student={"logits": logits_s}, teacher={"logits": logits_t}, targets=TARGETS).loss
        close(loss, alone)


def test_sdd_refuses_scales_that_do_not_fit():
    small = {"last_map": draw(B, 3, 2, 2), "head": (draw(C, 3), None)}
    large = {"last_map": draw(B, 3, 4, 4), "head": (draw(C, 3), None), "logits": TEACHER}
    with pytest.raises(ConfigError, match="student's last map of 2×2: each must be from 1 to 2"):
        evaluate("sdd", {"scales": [1, 4]}, student=small, teacher=large, targets=TARGETS, num_classes=C)


# WKD-L


def costs(weight, sharpness):
    unit = [w / w.norm() for w in weight]
    return [[1 - math.exp(-sharpness * max(0.0, 1 - float(a @ b))) for b in unit] for a in unit]


def wkd_loop(z_s, cost, T, gamma, strength, iterations):
    soft = moved = 0.0
    for i, y in enumerate(TARGETS.tolist()):
        soft = soft - softmax(TEACHER[i])[y] * softmax(z_s[i])[y].log() / B
        others = without(range(C), y)
        a, b = softmax(without(z_s[i], y), T), softmax(without(TEACHER[i], y), T)
        K = [[math.exp(-cost[j][k] / strength) for k in others] for j in others]
        n = range(C - 1)
        u = [torch.tensor(1.0, dtype=torch.float64)] * (C - 1)
        for _ in range(iterations):
            v = [b[k] / sum(K[j][k] * u[j] for j in n) for k in n]
            u = [a[j] / sum(K[j][k] * v[k] for k in n) for j in n]
        moved = moved + sum(u[j] * K[j][k] * v[k] * cost[others[j]][others[k]] for j in n for k in n) / B
    return {"target": soft, "transport": gamma * moved}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 2.0, "gamma": 3.0, "sharpness": 0.5, "regularisation": 0.2, "iterations": 1},
    ],
)
def test_wkd_l(options):
    weight = draw(C, 6)
    result = evaluate(
        "wkd_l",
        options,
        student={"logits": STUDENT},
        teacher={"logits": TEACHER, "head": (weight, draw(C))},
        targets=TARGETS,
    )
    o = {"temperature": 8.0, "gamma": 600.0, "sharpness": 1.0, "regularisation": 0.05, "iterations": 10} | options
    z, cost = leaf(STUDENT), costs(weight, o["sharpness"])
    terms = wkd_loop(z, cost, o["temperature"], o["gamma"], o["regularisation"], o["iterations"])
    check(result, terms, {"logits": z})


def test_wkd_l_comes_close_to_the_cheapest_transport():
    weight, T = draw(C, 6), 4.0
    result = evaluate(
        "wkd_l",
        {"temperature": T, "gamma": 1.0, "regularisation": 0.02, "iterations": 3000},
        student={"logits": STUDENT},
        teacher={"logits": TEACHER, "head": (weight, None)},
        targets=TARGETS,
    )
    cost, total = costs(weight, 1.0), 0.0
    for i, y in enumerate(TARGETS.tolist()):
        others, n = without(range(C), y), C - 1
        a, b = softmax(without(STUDENT[i], y), T), softmax(without(TEACHER[i], y), T)
        rows = [[float(k // n == j) for k in range(n * n)] for j in range(n)]
        columns = [[float(k % n == j) for k in range(n * n)] for j in range(n)]
        c = [cost[j][k] for j in others for k in others]
        total += linprog(c, A_eq=rows + columns, b_eq=[float(x) for x in a + b]).fun / B
    assert abs(float(result.terms["transport"]) - total) < 0.02 * total


def test_wkd_l_of_two_classes_and_of_large_logits_is_finite():
    for z_s, z_t in (
        (STUDENT[:, :2], TEACHER[:, :2]),
        (1e4 * STUDENT.float(), -1e4 * TEACHER.float()),
    ):
        classes = z_s.shape[1]
        result = evaluate(
            "wkd_l",
            {"regularisation": 0.02},
            student={"logits": z_s},
            teacher={"logits": z_t, "head": (draw(classes, 3).to(z_s), None)},
            targets=TARGETS % classes,
        )
        assert result.loss.isfinite() and result.gradients["logits"].isfinite().all()
    assert result.terms["transport"] > 0


# Two views

STRONG_S, STRONG_T = draw(B, C), draw(B, C)


def two_views(name, options):
    return evaluate(
        name,
        options,
        student={"logits": STUDENT, "views": {"strong": {"logits": STRONG_S}}},
        teacher={"logits": TEACHER, "views": {"strong": {"logits": STRONG_T}}},
        targets=TARGETS,
    )


def test_crld():
    tops = sorted(float(max(softmax(row))) for row in TEACHER)
    options = {"temperature": 3.0, "within": 2.0, "cross": 0.5, "label": 0.3}
    options |= {"sure_weak": sum(tops[1:3]) / 2, "sure_strong": 0.6}
    result = two_views("crld", options)
    s_w, s_s = leaf(STUDENT), leaf(STRONG_S)
    terms, counted = dict.fromkeys(("within", "cross", "label"), 0.0), [0, 0]
    for i, y in enumerate(TARGETS.tolist()):
        if max(softmax(TEACHER[i])) >= options["sure_weak"]:
            counted[0] += 1
            terms["within"] += 2.0 * (kl(TEACHER[i], s_w[i], 3.0) + kl(STRONG_T[i], s_s[i], 3.0)) / B
        if max(softmax(STRONG_T[i])) >= 0.6:
            counted[1] += 1
            terms["cross"] += 0.5 * (kl(TEACHER[i], s_s[i], 3.0) + kl(STRONG_T[i], s_w[i], 3.0)) / B
        terms["label"] -= 0.3 * softmax(s_s[i])[y].log() / B
    assert counted[0] == 3 and 0 < counted[1] < B
    check(result, terms, {"logits": s_w, "views.strong.logits": s_s})


def test_crld_of_an_unsure_teacher_is_the_label_alone():
    result = two_views("crld", {"sure_weak": 1.0, "sure_strong": 1.0})
    assert result.terms["within"] == 0 and result.terms["cross"] == 0 and result.terms["label"] > 0


def test_mlkd():
    result = two_views("mlkd", {"temperatures": [1.5, 4.0], "alignment": 0.8, "label": 0.2})
    s_w, s_s = leaf(STUDENT), leaf(STRONG_S)
    terms = dict.fromkeys(("instance", "batch", "class", "label"), 0.0)
    for (z_s, z_t), T in itertools.product([(s_w, TEACHER), (s_s, STRONG_T)], [1.5, 4.0]):
        P_s, P_t = [softmax(row, T) for row in z_s], [softmax(row, T) for row in z_t]
        for i in range(B):
            terms["instance"] += 0.8 * kl(z_t[i], z_s[i], T) / B
        for i, j in itertools.product(range(B), repeat=2):
            inner_s, inner_t = (sum(P[i][c] * P[j][c] for c in range(C)) for P in (P_s, P_t))
            terms["batch"] += 0.8 * (inner_t - inner_s) ** 2 / B
        for c, d in itertools.product(range(C), repeat=2):
            inner_s, inner_t = (sum(P[i][c] * P[i][d] for i in range(B)) for P in (P_s, P_t))
            terms["class"] += 0.8 * (inner_t - inner_s) ** 2 / C
    for i, y in enumerate(TARGETS.tolist()):
        terms["label"] -= 0.2 * softmax(s_s[i])[y].log() / B
    check(result, terms, {"logits": s_w, "views.strong.logits": s_s})


# SSKD

ROTATIONS = ("rot90", "rot180", "rot270")
EMBEDDINGS = {"student": draw(4, B, 3), "teacher": draw(4, B, 6)}
LOGITS = {"student": draw(4, B, C), "teacher": draw(4, B, C)}


def rotated(side, embeddings=EMBEDDINGS, logits=LOGITS):
    found = [{"logits": logits[side][r], "embedding": embeddings[side][r]} for r in range(4)]
    return found[0] | {"views": dict(zip(ROTATIONS, found[1:]))}


def sskd_cosines(state, side, embeddings):
    """A[(i, r)][j], with the head of `side`."""

    def head(x):
        weights = [state[f"head_{side}.{k}.{kind}"] for k in (0, 2) for kind in ("weight", "bias")]
        h = (weights[2] @ (weights[0] @ x + weights[1]).clamp(min=0)) + weights[3]
        return h / h.norm()

    upright = [head(embeddings[0][j]) for j in range(B)]
    return {(i, r): [head(embeddings[r][i]) @ other for other in upright] for i in range(B) for r in range(1, 4)}


def sskd_chosen(scores, right, share):
    """Right ones, and the share of the wrong ones with the least errors, in the order (sample, rotation)."""
    errors = {at: sum(bool(x > row[right(at)]) for x in row) for at, row in scores.items()}
    wrong = sorted((error, at) for at, error in errors.items() if error)
    assert len(wrong) > 3 and len(wrong) < 3 * B
    return [at for at, error in errors.items() if not error] + [at for _, at in wrong[: int(share * len(wrong))]]


@pytest.mark.parametrize("keep, keep_similar", [(1.0, 0.75), (0.5, 0.0)])
def test_sskd(keep, keep_similar):
    options = {"keep": keep, "keep_similar": keep_similar, "transformation": 2.0, "similarity": 3.0}
    options |= {"temperature": 2.5, "similarity_temperature": 0.6}
    result = evaluate("sskd", options, student=rotated("student"), teacher=rotated("teacher"), targets=TARGETS)
    leaves = {"logits": [leaf(x) for x in LOGITS["student"]], "embedding": [leaf(x) for x in EMBEDDINGS["student"]]}
    heads = {name: leaf(x) for name, x in result.state.items() if name.startswith("head_s")}
    z_t = {(i, r): LOGITS["teacher"][r, i] for i in range(B) for r in range(1, 4)}
    A_t = sskd_cosines(result.state, "t", EMBEDDINGS["teacher"])
    A_s = sskd_cosines(heads, "s", leaves["embedding"])
    chosen = sskd_chosen(z_t, lambda at: int(TARGETS[at[0]]), keep)
    similar = sskd_chosen(A_t, lambda at: at[0], keep_similar)
    terms = {
        "transformation": 2.0 * sum(kl(z_t[i, r], leaves["logits"][r][i], 2.5) for i, r in chosen) / len(chosen),
        "similarity": 3.0 * sum(kl(A_t[at], A_s[at], 0.6) for at in similar) / len(similar),
    }
    places = {f"views.{name}.{kind}": leaves[kind][r] for kind in leaves for r, name in enumerate(ROTATIONS, 1)}
    check(result, terms, places | {"embedding": leaves["embedding"][0]} | heads)


def test_sskd_first_trains_the_head_of_the_teacher():
    given = {"student": rotated("student"), "teacher": rotated("teacher"), "targets": TARGETS}
    result = evaluate("sskd", {}, stage="teacher_head", **given)
    heads = {name: leaf(x) for name, x in result.state.items() if name.startswith("head_t")}
    A = sskd_cosines(heads, "t", EMBEDDINGS["teacher"])
    check(result, {"": sum(-softmax(row)[i].log() for (i, _), row in A.items()) / len(A)}, heads)


def test_sskd_of_zero_embeddings_and_one_sample_is_finite():
    for rows in (1, B):
        embeddings = {side: torch.zeros_like(x[:, :rows]) for side, x in EMBEDDINGS.items()}
        logits = {side: x[:, :rows] for side, x in LOGITS.items()}
        sides = [rotated(side, embeddings, logits) for side in ("student", "teacher")]
        result = evaluate("sskd", {}, student=sides[0], teacher=sides[1], targets=TARGETS[:rows])
        assert result.loss.isfinite() and all(x.isfinite().all() for x in result.gradients.values())


# Without a teacher


class Peer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(C, 3))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("peers, T", [(1, 1.0), (2, 3.0)])
def test_dml(peers, T):
    pictures = draw(B, 3, 1, 1)
    result = evaluate(
        "dml",
        {"peers": peers, "temperature": T},
        student={"logits": STUDENT, "pictures": pictures},
        targets=TARGETS,
        new_student=Peer,
    )
    z, weights = leaf(STUDENT), [leaf(result.state[f"peers.{k}.weight"]) for k in range(peers)]
    logits = [z, *(pictures.flatten(1) @ w.T for w in weights)]
    terms = dict.fromkeys(("student", "peers", "peers_label"), 0.0)
    for k, j in itertools.permutations(range(peers + 1), 2):
        follow = sum(kl(logits[j][i].detach(), logits[k][i], T) for i in range(B)) / B / peers
        terms["peers" if k else "student"] += follow
    for k in range(1, peers + 1):
        terms["peers_label"] -= sum(softmax(logits[k][i])[TARGETS[i]].log() for i in range(B)) / B
    result.gradients.pop("pictures")
    check(result, terms, {"logits": z} | {f"peers.{k}.weight": w for k, w in enumerate(weights)})


def byot_branch(state, branch, x):
    """F_i, by hand: convolutions whose kernel is their stride are matrices on blocks."""
    for k in (0, 3, 6):
        weight, bias = (state[f"bottlenecks.{branch}.{k}.{kind}"] for kind in ("weight", "bias"))
        side = weight.shape[-1]
        blocks = x.unfold(2, side, side).unfold(3, side, side)
        x = torch.einsum("bchwij,ocij->bohw", blocks, weight) + bias[:, None, None]
        mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        gain, shift = (state[f"bottlenecks.{branch}.{k + 1}.{kind}"] for kind in ("weight", "bias"))
        x = ((x - mean) / (var + 1e-5).sqrt() * gain[:, None, None] + shift[:, None, None]).clamp(min=0)
    return x.mean(dim=(2, 3))


def test_byot():
    maps = [draw(B, 2, 8, 8), draw(B, 3, 8, 8), draw(B, 5, 4, 4), draw(B, 8, 2, 2)]
    options = {"alpha": 0.4, "hint": 0.2, "temperature": 2.0}
    result = evaluate("byot", options, student={"logits": STUDENT, "features": maps}, targets=TARGETS)
    fixed = [name for name in result.state if "running" in name or "batches" in name]
    heads = {name: leaf(x) for name, x in result.state.items() if name not in fixed}
    leaves = {f"features.{k}": leaf(maps[k]) for k in (1, 2)}
    deepest = maps[3].mean(dim=(2, 3))
    terms = dict.fromkeys(("label", "logits", "hint"), 0.0)
    for branch, x in enumerate(leaves.values()):
        F_i = byot_branch(heads, branch, x)
        z = F_i @ heads[f"classifiers.{branch}.weight"].T + heads[f"classifiers.{branch}.bias"]
        for i, y in enumerate(TARGETS.tolist()):
            terms["label"] -= 0.6 * softmax(z[i])[y].log() / B
            terms["logits"] += 0.4 * kl(STUDENT[i], z[i], 2.0) / B
            terms["hint"] += 0.2 * ((F_i[i] - deepest[i]) ** 2).sum() / B
    check(result, terms, leaves | heads)


def test_byot_needs_maps_between():
    with pytest.raises(ConfigError, match="it has 2 maps"):
        evaluate(
            "byot",
            {},
            student={"logits": STUDENT, "features": [draw(B, 2, 4, 4), draw(B, 3, 2, 2)]},
            targets=TARGETS,
        )


@pytest.mark.parametrize("name", ["ikl", "mlkd", "crld", "wkd_l"])
def test_two_classes_in_float32_with_large_logits(name):
    z_s, z_t = 300 * STUDENT[:, :2].float(), 300 * TEACHER[:, :2].float()
    result = evaluate(
        name,
        {},
        student={"logits": z_s, "views": {"strong": {"logits": -z_s}}},
        teacher={"logits": z_t, "views": {"strong": {"logits": z_t}}, "head": (torch.eye(2), None)},
        targets=TARGETS % 2,
    )
    assert result.loss.isfinite() and all(x.isfinite().all() for x in result.gradients.values())


def test_stage_of_sskd_trains_the_head_of_the_teacher_alone():
    cls = Registry.default().get("distillers", "sskd").cls
    shapes = Shapes(embedding=(3,), logits=(C,))
    setup = Setup(shapes, shapes, C, B, TARGETS, torch.Generator())
    distiller = cls(cls.Options(init_epochs=7, init_lr=0.01), setup)
    (stage,) = distiller.stages()
    assert (stage.epochs, stage.lr, stage.student, stage.modules) == (7, 0.01, False, (distiller.head_t,))
