"""CRD against plain loops, and the draws of its negatives."""

import math

import pytest
import torch

from kdray import BankOptions
from kdray.contrast.draws import OtherClasses, SameClass
from kdray.distiller import Batch, Setup, Shapes, Step
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.testing import evaluate

N, B, C, DIM = 40, 6, 4, 8
torch.manual_seed(0)
LABELS = torch.arange(N) % C
INDEX = torch.tensor([3, 17, 22, 8, 39, 12])
STUDENT, TEACHER = torch.randn(B, 5, dtype=torch.float64), torch.randn(B, 7, dtype=torch.float64)


def crd(negatives, state=None, **options):
    return evaluate(
        "crd",
        {"dim": DIM, "negatives": negatives, **options},
        student={"embedding": STUDENT},
        teacher={"embedding": TEACHER},
        targets=LABELS[INDEX],
        indices=INDEX,
        num_samples=N,
        num_classes=C,
        labels=LABELS,
        state=state,
    )


def embed(state, side, x):
    y = x @ state[f"embed_{side}.weight"].T + state[f"embed_{side}.bias"]
    return y / y.norm(dim=1, keepdim=True)


def nce_loops(anchors, positives, negatives, temperature=0.07):
    """Equations 18 and 19 with the constant of the first batch; `negatives` is a list of vectors for each anchor."""

    def score(a, b):
        return math.exp(float(a @ b) / temperature)

    rows = [[score(a, p)] + [score(a, n) for n in ns] for a, p, ns in zip(anchors, positives, negatives)]
    z = sum(map(sum, rows)) / sum(map(len, rows)) * N
    total = 0.0
    for row in rows:
        c = (len(row) - 1) / N
        total += math.log(row[0] / z / (row[0] / z + c + 1e-7))
        total += sum(math.log(c / (value / z + c + 1e-7)) for value in row[1:])
    return -total / len(rows)


def test_batch_negatives_are_the_other_classes_of_the_batch():
    found = crd({"kind": "batch"})
    g_s, g_t = embed(found.state, "s", STUDENT), embed(found.state, "t", TEACHER)
    classes = LABELS[INDEX].tolist()
    expected = sum(
        nce_loops(a, b, [[b[j] for j in range(B) if classes[j] != classes[i]] for i in range(B)])
        for a, b in ((g_s, g_t), (g_t, g_s))
    )
    assert found.loss.item() == pytest.approx(expected, rel=1e-9)


def test_infonce_of_the_batch():
    found = crd({"kind": "batch"}, objective="infonce", temperature=0.5)
    g_s, g_t = embed(found.state, "s", STUDENT), embed(found.state, "t", TEACHER)
    classes, expected = LABELS[INDEX].tolist(), 0.0
    for a, b in ((g_s, g_t), (g_t, g_s)):
        for i in range(B):
            others = [math.exp(float(a[i] @ b[j]) / 0.5) for j in range(B) if classes[j] != classes[i]]
            own = math.exp(float(a[i] @ b[i]) / 0.5)
            expected -= math.log(own / (own + sum(others))) / B
    assert found.loss.item() == pytest.approx(expected, rel=1e-9)


def test_queue_is_scored_before_it_is_written_and_wraps_around():
    size = 8
    state, classes = None, torch.full((size,), -1)
    for step in range(3):
        before = crd({"kind": "queue", "count": size}).state if state is None else state
        fixed = {"z_s": torch.zeros(()), "z_t": torch.zeros(())}  # so that each step's loss has its own constant
        found = crd({"kind": "queue", "count": size}, state=None if step == 0 else {**state, **fixed})
        if step:
            g_s, g_t = embed(found.state, "s", STUDENT), embed(found.state, "t", TEACHER)
            ok = [[j for j in range(size) if classes[j] != LABELS[INDEX[i]]] for i in range(B)]
            expected = nce_loops(g_s, g_t, [[before["contrast.queue_t"][j] for j in row] for row in ok])
            expected += nce_loops(g_t, g_s, [[before["contrast.queue_s"][j] for j in row] for row in ok])
            assert found.loss.item() == pytest.approx(expected, rel=1e-9)
        state = found.state
        for k in range(B):
            classes[(step * B + k) % size] = LABELS[INDEX[k]]
        assert torch.equal(state["contrast.classes"], classes)
        assert state["contrast.head"] == (step + 1) * B % size
    newest = embed(state, "t", TEACHER)
    assert torch.allclose(state["contrast.queue_t"][(2 * B + 5) % size], newest[5])


def test_bank_rows_are_written_with_momentum_and_keep_length_one():
    before = crd(
        {"kind": "bank", "count": 10, "momentum": 0.9}
    )  # evaluate starts from the same random bank at the same seed
    start = Registry.default().get("distillers", "crd").cls
    setup = Setup(Shapes(embedding=(5,)), Shapes(embedding=(7,)), C, N, LABELS, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    fresh = start(start.Options(dim=DIM, negatives={"kind": "bank", "count": 10, "momentum": 0.9}), setup).double()
    g_s = embed(before.state, "s", STUDENT)
    for row, sample in enumerate(INDEX.tolist()):
        mixed = 0.9 * fresh.contrast.memory_s[sample] + 0.1 * g_s[row]
        assert torch.allclose(before.state["contrast.memory_s"][sample], mixed / mixed.norm())
    untouched = [i for i in range(N) if i not in INDEX.tolist()]
    assert torch.equal(before.state["contrast.memory_s"][untouched], fresh.contrast.memory_s[untouched])


def draw(sampler, rows, size, offset, seed=0):
    batch = Batch(index=rows, target=LABELS[rows], offset=offset, size=size)
    return sampler(batch, Step(0, 0, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("count", [1, 20, 30, 31, 500])
def test_negatives_are_of_other_classes_and_do_not_depend_on_the_worker(count):
    sampler = OtherClasses(count, LABELS)
    whole = draw(sampler, INDEX, B, 0)
    assert whole.shape == (B, count)
    assert (LABELS[whole] != LABELS[INDEX][:, None]).all()
    if count <= 30:  # 40 samples less 10 of the class: without replacement
        assert all(len(set(row.tolist())) == count for row in whole)
    halves = [draw(sampler, INDEX[:3], B, 0), draw(sampler, INDEX[3:], B, 3)]
    assert torch.equal(torch.cat(halves), whole)


@pytest.mark.parametrize("count", [5, 300])
def test_every_sample_of_another_class_is_drawn_equally_often(count):
    sampler, seen = OtherClasses(count, LABELS), torch.zeros(N)
    repeats = 60_000 // count // B
    for seed in range(repeats):
        seen += draw(sampler, INDEX, B, 0, seed).flatten().bincount(minlength=N)
    for c in range(C):
        expected = repeats * count * (LABELS[INDEX] != c).sum() / 30
        assert (seen[c == LABELS] - expected).abs().max() < 6 * expected.sqrt(), f"class {c}"


def test_relaxed_positives_are_of_the_same_class_and_vary():
    sampler, seen = SameClass(LABELS), set()
    for seed in range(200):
        found = draw(sampler, INDEX, B, 0, seed)
        assert (LABELS[found] == LABELS[INDEX]).all()
        seen.add(int(found[0]))
    assert len(seen) == 10


def test_one_class_has_no_negatives():
    with pytest.raises(ConfigError, match="only one class"):
        OtherClasses(4, torch.zeros(10, dtype=torch.long))


def test_relax_and_exact_differ_only_in_the_positive():
    exact = crd({"kind": "bank", "count": 10})
    relax = crd({"kind": "bank", "count": 10, "mode": "relax"})
    assert exact.loss != relax.loss
    assert BankOptions().mode == "exact"


@pytest.mark.parametrize("objective", ["nce", "infonce"])
def test_a_row_without_negatives_has_finite_gradients(objective):
    """The last batch of an epoch may hold one sample, or one class."""
    for rows in (1, 3):
        found = evaluate(
            "crd",
            {"dim": DIM, "negatives": {"kind": "batch"}, "objective": objective},
            student={"embedding": STUDENT[:rows]},
            teacher={"embedding": TEACHER[:rows]},
            targets=torch.ones(rows, dtype=torch.long),
            num_samples=N,
            num_classes=C,
            labels=LABELS,
        )
        assert found.loss.isfinite()
        assert found.gradients and all(g.isfinite().all() for g in found.gradients.values())
