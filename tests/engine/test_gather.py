"""The differentiable gather: every worker's loss reaches the rows it read."""

from multiprocessing import Manager

import pytest
import torch
import torch.distributed as dist

from kdray.engine.context import Context
from tests.engine.processes import spawn

COUNTS = [3, 2]


def rows():
    return torch.arange(10, dtype=torch.float64).view(5, 2) / 7


def loss(gathered_a, gathered_b, rank):
    """Both gathers get one gradient tensor from autograd: neither may change it for the other."""
    return ((gathered_a + gathered_b) * (rank + 1)).pow(2).sum()


def worker(rank, address, results):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    context = Context(rank, 2)
    start = sum(COUNTS[:rank])
    a = rows()[start : start + COUNTS[rank]].requires_grad_()
    b = (rows() + 1)[start : start + COUNTS[rank]].requires_grad_()
    both = context.gather(a, COUNTS, True), context.gather(b, COUNTS, True)
    loss(*both, rank).backward()
    results[rank] = {"gathered": both[0].detach(), "a": a.grad, "b": b.grad}
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    results = Manager().dict()
    spawn(worker, (f"file://{tmp_path_factory.mktemp('gloo')}/meet", results), 2)
    return [results[rank] for rank in range(2)]


def test_rows_come_in_global_order(distributed):
    for result in distributed:
        assert torch.equal(result["gathered"], rows())


def test_gradients_are_those_of_the_sum_of_all_losses(distributed):
    a, b = rows().requires_grad_(), (rows() + 1).requires_grad_()
    (loss(a, b, 0) + loss(a, b, 1)).backward()
    for name, whole in (("a", a.grad), ("b", b.grad)):
        assert torch.allclose(torch.cat([result[name] for result in distributed]), whole)
