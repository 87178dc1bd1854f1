"""Draws are a function of (seed, view, sample, stream), and are as uniform as they should be."""

import pytest
import torch

from kdray.data.views import batches, share, uniform

IDS = torch.arange(20_000)


def test_the_rest_of_the_batch_does_not_matter():
    whole = uniform(3, 7, IDS, 1, 4)
    order = torch.randperm(len(IDS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(3, 7, IDS[order], 1, 4), whole[order])
    assert torch.equal(uniform(3, 7, IDS[5:6], 1, 4), whole[5:6])
    assert torch.equal(uniform(3, 7, IDS, 1, 2), whole[:, :2])


@pytest.mark.parametrize("other", [(4, 7, 1), (3, 8, 1), (3, 7, 2), (7, 3, 1), (-3, 7, 1)])
def test_each_part_of_the_key_counts(other):
    seed, view, stream = other
    a, b = uniform(3, 7, IDS, 1, 1)[:, 0], uniform(seed, view, IDS, stream, 1)[:, 0]
    assert (a != b).all()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03  # 4 deviations of 20,000 independent pairs


def test_uniform():
    u = uniform(0, 0, IDS, 0, 3)
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    for column in u.unbind(1):
        counts = torch.histc(column, 50, 0, 1)
        assert ((counts - 400) ** 2 / 400).sum() < 95  # chi-square, 49 degrees of freedom: p = 1e-4
    assert len(u.flatten().unique()) == u.numel()


def test_the_numbers_stay_what_they_were():
    """Runs are resumed, and teachers' outputs kept, by versions of kdray to come."""
    expected = [
        [0.3701305002158707, 0.8100801961070256],
        [0.6847205324334206, 0.032869229487778595],
        [0.6791667598233726, 0.8600639833640527],
    ]
    assert torch.equal(uniform(3, 7, torch.tensor([0, 5, 49_999]), 1, 2), torch.tensor(expected, dtype=torch.float64))


def test_neighbours_are_unrelated():
    u = uniform(0, 0, IDS, 0, 2)
    for a, b in ((u[:-1, 0], u[1:, 0]), (u[:, 0], u[:, 1]), (u[:-1, 1], u[1:, 0])):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03
    views = torch.stack([uniform(0, v, IDS, 0, 1)[:, 0] for v in range(6)])
    seeds = torch.stack([uniform(s, 0, IDS, 0, 1)[:, 0] for s in range(6)])
    for table in (views, seeds):
        assert (torch.corrcoef(table) - torch.eye(6)).abs().max() < 0.03


def test_an_epoch_visits_every_sample_once_in_its_own_order():
    epochs = [torch.cat(batches(103, 10, 5, e, "keep")) for e in range(3)]
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(103))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[2], torch.cat(batches(103, 10, 5, 2, "keep")))
    assert not torch.equal(epochs[0], torch.cat(batches(103, 10, 6, 0, "keep")))


def test_last_batch():
    assert [len(b) for b in batches(103, 50, 0, 0, "keep")] == [50, 50, 3]
    assert [len(b) for b in batches(103, 50, 0, 0, "drop")] == [50, 50]
    assert [len(b) for b in batches(100, 50, 0, 0, "drop")] == [50, 50]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_shares_are_consecutive_and_even(workers):
    for rows in (1, 7, 64, 65):
        parts = [torch.arange(rows)[share(rows, r, workers)] for r in range(workers)]
        assert torch.equal(torch.cat(parts), torch.arange(rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
