"""The numbers of a report against the same in plain loops."""

import math

import pytest
import torch

from kdray.run import analysis

N, C = 90, 5


@pytest.fixture
def said():
    """Logits of a teacher and of a student, and labels; no picture is of the last class."""
    generator = torch.Generator().manual_seed(3)
    teacher = 2 * torch.randn(N, C, generator=generator)
    student = teacher + torch.randn(N, C, generator=generator)
    labels = (teacher + 2 * torch.randn(N, C, generator=generator))[:, : C - 1].argmax(1)
    return teacher, student, labels


def probabilities(row, temperature=1.0):
    exps = [math.exp(x / temperature) for x in row]
    return [x / sum(exps) for x in exps]


def likeliest(row):
    return max(range(len(row)), key=row.__getitem__)


def test_confusion_and_classes(said):
    _, student, labels = said
    counts = [[0] * C for _ in range(C)]
    for row, label in zip(student.tolist(), labels.tolist()):
        counts[label][likeliest(row)] += 1
    found = analysis.confusion(student, labels)
    assert found.tolist() == counts
    shares = analysis.class_accuracy(found)
    for k in range(C - 1):
        assert float(shares[k]) == pytest.approx(counts[k][k] / sum(counts[k]))
    assert shares[C - 1].isnan()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reliability(said, temperature):
    _, student, labels = said
    bins = [[] for _ in range(15)]
    for row, label in zip(student.tolist(), labels.tolist()):
        shares = probabilities(row, temperature)
        bin = next(i for i in range(15) if i / 15 < max(shares) <= (i + 1) / 15)
        bins[bin].append((max(shares), likeliest(row) == label))
    found = analysis.reliability(student, labels, temperature)
    ece = 0.0
    for i, members in enumerate(bins):
        assert int(found.counts[i]) == len(members)
        if members:
            confidence, accuracy = (sum(column) / len(members) for column in zip(*members))
            assert float(found.confidence[i]) == pytest.approx(confidence)
            assert float(found.accuracy[i]) == pytest.approx(accuracy)
            ece += len(members) / N * abs(confidence - accuracy)
    assert found.ece == pytest.approx(ece) and ece > 0.01


def test_a_sure_network_fills_the_last_bin():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    found = analysis.reliability(logits, torch.tensor([0, 0]))
    assert found.counts.tolist() == [0] * 14 + [2] and found.ece == pytest.approx(0.5)


def test_the_best_temperature(said):
    _, student, labels = said

    def loss(temperature):
        rows = [probabilities(row, temperature)[label] for row, label in zip(student.tolist(), labels.tolist())]
        return -sum(map(math.log, rows)) / N

    found = analysis.best_temperature(student, labels)
    assert all(loss(found) < loss(found * factor) for factor in (0.5, 0.98, 1.02, 2.0))


def test_logits_that_were_scaled_are_scaled_back():
    """Labels drawn from the softmax itself are calibrated; three times the logits want T = 3."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert analysis.best_temperature(3 * logits, labels) == pytest.approx(3.0, rel=0.1)
    assert analysis.reliability(3 * logits, labels).ece > 0.2 > 0.05 > analysis.reliability(logits, labels).ece


def test_agreement(said):
    teacher, student, _ = said
    same = [likeliest(a) == likeliest(b) for a, b in zip(teacher.tolist(), student.tolist())]
    assert analysis.agreement(teacher, student) == pytest.approx(sum(same) / N) and not all(same)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergences(said, temperature):
    teacher, student, _ = said
    found = analysis.divergences(teacher, student, temperature)
    for value, a, b in zip(found.tolist(), teacher.tolist(), student.tolist()):
        a, b = probabilities(a, temperature), probabilities(b, temperature)
        assert value == pytest.approx(sum(x * math.log(x / y) for x, y in zip(a, b)), rel=1e-6)
    assert not analysis.divergences(teacher, teacher).any()


def test_correlation_difference(said):
    def correlation(x, y):
        mx, my = sum(x) / N, sum(y) / N
        product = sum((a - mx) * (b - my) for a, b in zip(x, y))
        return product / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))

    teacher, student, _ = said
    columns = [of.T.tolist() for of in (teacher, student)]
    found = analysis.correlation_difference(teacher, student)
    for i in range(C):
        for j in range(C):
            theirs, ours = (correlation(of[i], of[j]) for of in columns)
            assert float(found[i, j]) == pytest.approx(abs(theirs - ours), abs=1e-9)


def test_a_class_that_is_always_said_alike_is_correlated_with_none(said):
    teacher, student, _ = said
    student[:, 2] = 1.0
    found = analysis.correlation_difference(teacher, student)
    assert not found.isnan().any()
    assert torch.equal(found[2, [0, 1]], torch.corrcoef(teacher.double().T).abs()[2, [0, 1]])


def test_softened(said):
    teacher, _, _ = said
    found = analysis.softened(teacher, 16.0)
    for row, values in zip(teacher.tolist(), found.tolist()):
        assert values == pytest.approx(probabilities(row, 16.0))


def test_scores(said):
    _, student, labels = said
    rows = list(zip(student.tolist(), labels.tolist()))
    found = analysis.scores(student, labels)
    assert found["samples"] == N and found["top5"] == 1.0  # of five classes
    assert found["top1"] == pytest.approx(sum(likeliest(row) == label for row, label in rows) / N)
    loss = -sum(math.log(probabilities(row)[label]) for row, label in rows) / N
    assert found["loss"] == pytest.approx(loss) == analysis.nll(student, labels)
    assert analysis.nll(student[:0], labels[:0]) == 0


def test_calibrated_on_other_pictures(said):
    _, student, labels = said
    halves = analysis.calibrated(student, labels, None)
    assert halves.temperature == analysis.best_temperature(student[::2], labels[::2])
    assert halves.nll_after == analysis.nll(student[1::2], labels[1::2], halves.temperature)
    assert halves.before.ece == analysis.reliability(student[1::2], labels[1::2]).ece
    held_out = analysis.calibrated(student[:50], labels[:50], (student[50:], labels[50:]))
    assert held_out.temperature == analysis.best_temperature(student[50:], labels[50:])
    assert int(held_out.after.counts.sum()) == 50 and held_out.nll_before == analysis.nll(student[:50], labels[:50])
