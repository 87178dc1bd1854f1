"""Losses on logits against plain loops in float64, reference numbers, and inputs that overflow or divide by zero."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from kdray.distiller import Batch, Outputs, Setup, Shapes, Step
from kdray.registry import Registry
from kdray.testing import evaluate

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ["ctkd", "dist", "dkd", "lskd", "luminet", "nkd", "normkd", "rld", "skd", "tfkd", "ttm", "wsld"]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10)


# Plain loops. A row is a list of numbers with gradients.


def total(xs):
    xs = list(xs)
    result = xs[0]
    for x in xs[1:]:
        result = result + x
    return result


def mean(xs):
    xs = list(xs)
    return total(xs) / len(xs)


def softmax(row):
    powers = [x.exp() for x in row]
    return [x / total(powers) for x in powers]


def over(row, T):
    return [x / T for x in row]


def deviation(row):
    m = mean(row)
    return (total((x - m) ** 2 for x in row) / (len(row) - 1)).sqrt()


def standardised(row):
    m, d = mean(row), deviation(row)
    return [(x - m) / (d + 1e-7) for x in row]


def kl(p, q):
    return total(a * (a.log() - b.log()) for a, b in zip(p, q))


def without(row, k):
    return [x for j, x in enumerate(row) if j != k]


def target_and_rest(p, k):
    return [p[k], total(without(p, k))]


def lskd(S, T, y, temperature=2.0):
    t = temperature
    return t**2 * mean(
        kl(softmax(over(standardised(zt), t)), softmax(over(standardised(zs), t))) for zs, zt in zip(S, T)
    )


def normkd(S, T, y, temperature=2.0):
    losses = []
    for zs, zt in zip(S, T):
        ts, tt = temperature * deviation(zs), temperature * deviation(zt)
        losses.append(tt**2 * kl(softmax(over(zt, tt)), softmax(over(zs, ts))))
    return mean(losses)


def at_temperature(S, T, t):
    return t**2 * mean(kl(softmax(over(zt, t)), softmax(over(zs, t))) for zs, zt in zip(S, T))


def dkd(S, T, y, temperature=4.0, alpha=1.0, beta=8.0, standardise=False):
    losses = []
    for zs, zt, k in zip(S, T, y):
        zs, zt = (standardised(z) if standardise else z for z in (zs, zt))
        zs, zt = over(zs, temperature), over(zt, temperature)
        b = kl(target_and_rest(softmax(zt), k), target_and_rest(softmax(zs), k))
        q = kl(softmax(without(zt, k)), softmax(without(zs, k)))
        losses.append(temperature**2 * (alpha * b + beta * q))
    return mean(losses)


def nkd(S, T, y, temperature=1.0, gamma=1.5):
    losses = []
    for zs, zt, k in zip(S, T, y):
        target = -softmax(zt)[k] * softmax(zs)[k].log()
        q_t, q_s = (softmax(over(without(z, k), temperature)) for z in (zt, zs))
        losses.append(target - gamma * temperature**2 * total(a * b.log() for a, b in zip(q_t, q_s)))
    return mean(losses)


def ttm(S, T, y, gamma=0.1, weighted=False):
    losses = []
    for zs, zt in zip(S, T):
        powers = [p**gamma for p in softmax(zt)]
        divergence = kl([x / total(powers) for x in powers], softmax(zs))
        losses.append(total(powers) * divergence if weighted else divergence)
    return mean(losses)


def pearson(a, b):
    a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
    lengths = total(x**2 for x in a).sqrt() * total(x**2 for x in b).sqrt()
    return total(x * z for x, z in zip(a, b)) / (lengths + 1e-8)


def dist(S, T, y, temperature=4.0, beta=1.0, gamma=1.0):
    P = [softmax(over(z, temperature)) for z in S]
    Q = [softmax(over(z, temperature)) for z in T]
    inter = mean(1 - pearson(p, q) for p, q in zip(P, Q))
    intra = mean(1 - pearson([p[c] for p in P], [q[c] for q in Q]) for c in range(len(P[0])))
    return temperature**2 * (beta * inter + gamma * intra)


def rld(S, T, y, temperature=4.0, temperature_confidence=4.0, alpha=1.0, beta=8.0):
    losses = []
    for zs, zt, k in zip(S, T, y):
        top = max(range(len(zt)), key=lambda j: zt[j].item())
        confidence = kl(
            target_and_rest(softmax(over(zt, temperature_confidence)), top),
            target_and_rest(softmax(over(zs, temperature_confidence)), k),
        )
        below = [j for j in range(len(zt)) if zt[j] < zt[k]]
        correlation = 0.0
        if below:
            q_t, q_s = (softmax(over([z[j] for j in below], temperature)) for z in (zt, zs))
            correlation = kl(q_t, q_s)
        losses.append(alpha * temperature_confidence**2 * confidence + beta * temperature**2 * correlation)
    return mean(losses)


def luminet(S, T, y, temperature=4.0):
    def perceived(Z):
        columns = []
        for c in range(len(Z[0])):
            column = [z[c] for z in Z]
            m = mean(column)
            d = (mean((x - m) ** 2 for x in column) + 1e-5).sqrt()
            columns.append([(x - m) / d for x in column])
        return [[column[i] for column in columns] for i in range(len(Z))]

    return mean(
        kl(softmax(over(ht, temperature)), softmax(over(hs, temperature))) for hs, ht in zip(perceived(S), perceived(T))
    )


def wsld(S, T, y, temperature=2.0):
    losses = []
    for zs, zt, k in zip(S, T, y):
        ratio = softmax(zs)[k].log().item() / (softmax(zt)[k].log().item() - 1e-7)
        p_t, p_s = softmax(over(zt, temperature)), softmax(over(zs, temperature))
        soft = -total(a * b.log() for a, b in zip(p_t, p_s))
        losses.append((1 - math.exp(-ratio)) * temperature**2 * soft)
    return mean(losses)


def tfkd(S, T, y, temperature=20.0, correct=0.99):
    losses = []
    for zs, k in zip(S, y):
        u = [correct if j == k else (1 - correct) / (len(zs) - 1) for j in range(len(zs))]
        losses.append(kl(softmax([torch.tensor(x / temperature, dtype=torch.float64) for x in u]), softmax(zs)))
    return mean(losses)


def skd(S, T, y, temperature=4.0, regularisation=0.1):
    B, C = len(S), len(S[0])

    def gram(Z):
        units = []
        for z in Z:
            length = total(x**2 for x in z).sqrt()
            units.append([x / length for x in z])
        return [[total(a * b for a, b in zip(u, v)) / C for v in units] for u in units]

    G_s, G_t = gram(S), gram(T)
    D = [[a - b for a, b in zip(g_s, g_t)] for g_s, g_t in zip(G_s, G_t)]
    m = [mean(D[i][j] for i in range(B)) for j in range(B)]
    Sigma = [
        [
            total((D[i][j] - m[j]) * (D[i][k] - m[k]) for i in range(B)) / (B - 1) + (regularisation if j == k else 0)
            for k in range(B)
        ]
        for j in range(B)
    ]
    inverse = torch.stack([torch.stack(row) for row in Sigma]).inverse()
    direction = mean(
        total(D[i][j] * inverse[j][k] * D[i][k] for j in range(B) for k in range(B)).sqrt() for i in range(B)
    )
    return at_temperature(S, T, temperature) + direction


def draw(B, C, seed=0, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    S, T = (scale * torch.randn(B, C, generator=generator, dtype=torch.float64) for _ in "st")
    return S.to(dtype), T.to(dtype), torch.randint(C, (B,), generator=generator)


def run(name, options, S, T, y, **more):
    return evaluate(name, options, student={"logits": S}, teacher={"logits": T}, targets=y, **more)


def check(name, loops, options, S, T, y):
    ours = run(name, options, S, T, y)
    S = S.clone().requires_grad_()
    theirs = loops([list(z) for z in S], [list(z) for z in T], y.tolist(), **options)
    close(ours.loss, theirs.detach())
    gradient = torch.autograd.grad(theirs, S, allow_unused=True)[0] if theirs.requires_grad else None
    close(ours.gradients["logits"], torch.zeros_like(S) if gradient is None else gradient)


CASES = [
    (lskd, {}),
    (lskd, {"temperature": 3.0}),
    (normkd, {}),
    (normkd, {"temperature": 1.5}),
    (dkd, {}),
    (dkd, {"alpha": 0.5, "beta": 2.0, "temperature": 2.0}),
    (dkd, {"standardise": True, "beta": 9.0}),
    (nkd, {}),
    (nkd, {"temperature": 3.0, "gamma": 3.5}),
    (ttm, {}),
    (ttm, {"gamma": 0.5}),
    (ttm, {"gamma": 0.2, "weighted": True}),
    (dist, {}),
    (dist, {"temperature": 1.0, "beta": 0.5, "gamma": 2.0}),
    (rld, {}),
    (rld, {"temperature": 2.0, "temperature_confidence": 1.0, "alpha": 2.0, "beta": 0.5}),
    (luminet, {}),
    (luminet, {"temperature": 1.0}),
    (wsld, {}),
    (wsld, {"temperature": 4.0}),
    (tfkd, {}),
    (tfkd, {"temperature": 1.0, "correct": 0.9}),
    (skd, {}),
    (skd, {"temperature": 2.0, "regularisation": 0.01}),
]


@pytest.mark.parametrize("classes", [5, 2])
@pytest.mark.parametrize(
    "loops, options", CASES, ids=lambda x: getattr(x, "__name__", None) or ",".join(x) or "default"
)
def test_against_loops(loops, options, classes):
    check(loops.__name__, loops, options, *draw(6, classes))


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("temperature, alpha, beta", [(4, 1, 8), (1, 1, 0.5)])
def test_dkd_reference(which, temperature, alpha, beta):
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"losses_{which}.npz").items()}
    options = {"temperature": temperature, "alpha": alpha, "beta": beta}
    found = run("dkd", options, golden["student_logits"], golden["teacher_logits"], golden["targets"])
    name = f"dkd_T{temperature}_a{alpha}_b{beta}"
    close(found.loss, golden[f"{name}/loss"])
    close(found.gradients["logits"], golden[f"{name}/grad_0"])


def test_dkd_is_kd_where_beta_is_the_teachers_doubt():
    """KL = TCKD + (1 − p_t(y)) · NCKD for one sample: the decomposition that the method is named for."""
    S, T, y = draw(1, 6)
    doubt = 1 - (T / 4).softmax(1)[0, y[0]].item()
    decoupled = run("dkd", {"temperature": 4.0, "alpha": 1.0, "beta": doubt}, S, T, y)
    whole = run("kd", {"temperature": 4.0}, S, T, y)
    close(decoupled.loss, whole.loss)
    close(decoupled.gradients["logits"], whole.gradients["logits"])


@pytest.mark.parametrize("epoch", [0, 4, 9, 30])
def test_ctkd(epoch):
    """The student descends, θ climbs; λ has grown fully from the tenth epoch on."""
    S, T, y = draw(6, 5)
    theta = torch.tensor(0.3, dtype=torch.float64)
    found = run("ctkd", {"start": 2.0, "range": 5.0}, S, T, y, epoch=epoch, state={"theta": theta})
    S, theta = S.clone().requires_grad_(), theta.clone().requires_grad_()
    temperature = 2 + 5 / (1 + (-theta).exp())
    loss = at_temperature([list(z) for z in S], [list(z) for z in T], temperature)
    loss.backward()
    lambda_ = 0.5 * (math.cos(min(epoch + 1, 10) * math.pi / 10) + 1) - 1
    close(found.loss, loss.detach())
    close(found.gradients["logits"], S.grad)
    close(found.gradients["theta"], lambda_ * theta.grad)


def test_ctkd_begins_at_theta_1():
    assert run("ctkd", {}, *draw(2, 3)).state["theta"] == 1


def test_rld_of_a_teacher_that_ranks_the_label_last():
    S = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]], dtype=torch.float64)
    T = torch.tensor([[-4.0, 2.0, 3.0], [1.0, 5.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    check("rld", rld, {}, S, T, y)
    assert run("rld", {}, S[:1], T[:1], y[:1]).terms["correlation"] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [10, 2])
@pytest.mark.parametrize("scale", [1e4, 30.0, 0.0])
def test_float32_stays_finite(name, classes, scale):
    S, T, y = draw(8, classes, dtype=torch.float32, scale=scale)
    found = run(name, {}, S, T, y)
    assert found.loss.isfinite()
    assert found.gradients["logits"].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_one(name):
    found = run(name, {}, *draw(1, 4))
    assert found.loss.isfinite()
    assert found.gradients["logits"].isfinite().all()


@pytest.mark.parametrize("name", ["ctkd", "dkd", "lskd", "luminet", "normkd", "skd"])
def test_student_equal_to_its_teacher(name):
    """Nothing to learn: no loss, and no NaN from the root of 0."""
    _, T, y = draw(6, 4)
    found = run(name, {}, T, T, y)
    close(found.loss, torch.zeros_like(found.loss))
    close(found.gradients["logits"], torch.zeros_like(T))


class Workers:
    """`gather` between threads, rank after rank."""

    def __init__(self, count):
        self.barrier, self.given = threading.Barrier(count), [None] * count

    def step(self, rank):
        def gather(x, differentiable):
            self.barrier.wait()
            self.given[rank] = x if differentiable else x.detach()
            self.barrier.wait()
            return torch.cat(self.given)

        return Step(0, 0, torch.Generator(), rank, len(self.given), gather)


@pytest.mark.parametrize("name", NAMES)
def test_two_workers_compute_the_loss_of_the_global_batch(name):
    S, T, y = draw(7, 4)
    whole = run(name, {}, S, T, y)
    spec = Registry.default().get("distillers", name)
    setup = Setup(Shapes(logits=(4,)), Shapes(logits=(4,)), 4, 7, y, torch.Generator())
    distiller = spec.cls(spec.cls.Options(), setup).double()
    S.requires_grad_()
    workers, losses = Workers(2), [None, None]

    def work(rank, rows):
        batch = Batch(torch.arange(7)[rows], y[rows], offset=rows.start, size=7)
        result = distiller(Outputs(logits=S[rows]), Outputs(logits=T[rows]), batch, workers.step(rank))
        losses[rank] = sum(result.values()) if isinstance(result, dict) else result

    threads = [
        threading.Thread(target=work, args=(0, slice(0, 4))),
        threading.Thread(target=work, args=(1, slice(4, 7))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loss = (4 * losses[0] + 3 * losses[1]) / 7
    close(loss.detach(), whole.loss)
    close(torch.autograd.grad(loss, S)[0], whole.gradients["logits"])


def test_skd_is_no_number_where_its_covariance_cannot_be_decomposed():
    """λ vanishes in fp32, and 32 rows of 3 classes do not span 32 directions."""
    s, t = torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(0))
    targets, options = torch.arange(32) % 3, {"regularisation": 1e-46}
    assert evaluate("skd", options, student={"logits": s}, teacher={"logits": t}, targets=targets).loss.isnan()
