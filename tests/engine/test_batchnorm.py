"""Batch norm over the global batch, against one process's nn.BatchNorm2d."""

from multiprocessing import Manager

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kdray.engine.batchnorm import synchronise
from tests.engine.processes import spawn

WORKERS = 3
PARTS = [5, 4, 2]  # unequal on purpose


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3, affine=False)
    ).double()


def batch():
    torch.manual_seed(1)
    # A large mean: cancellation would show.
    return torch.randn(sum(PARTS), 2, 6, 6, dtype=torch.float64) + 1000


def step(net, x):
    """Sum of a non-linear function of the output, so that per-worker gradients add up to the global one."""
    y = net(x)
    (y**3).sum().backward()
    return y


def worker(rank, address, results):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WORKERS)
    net = synchronise(network(), torch.device("cpu"))
    start = sum(PARTS[:rank])
    x = batch()[start : start + PARTS[rank]].requires_grad_()
    y = step(net, x)
    grads = [p.grad.clone() for p in net.parameters()]
    for g in grads:
        dist.all_reduce(g)
    results[rank] = {"y": y.detach(), "dx": x.grad, "grads": grads, "state": net.state_dict()}
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    results = Manager().dict()
    address = f"file://{tmp_path_factory.mktemp('gloo')}/meet"
    spawn(worker, (address, results), WORKERS)
    return [results[rank] for rank in range(WORKERS)]


def test_outputs_gradients_and_statistics_are_those_of_one_process(distributed):
    net, x = network(), batch().requires_grad_()
    y = step(net, x)

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)

    close(torch.cat([r["y"] for r in distributed]), y.detach())
    close(torch.cat([r["dx"] for r in distributed]), x.grad)
    for ours, theirs in zip(distributed[0]["grads"], net.parameters()):
        close(ours, theirs.grad)
    for r in distributed:
        assert r["state"].keys() == net.state_dict().keys()
        for key, value in net.state_dict().items():
            close(r["state"][key], value)


def test_names_and_parameters_stay():
    net = network()
    before = dict(net.named_parameters())
    after = dict(synchronise(net, torch.device("cpu")).named_parameters())
    assert before.keys() == after.keys() and all(before[k] is after[k] for k in before)
