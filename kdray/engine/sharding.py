"""Networks in shares (`scale.shard`): each worker keeps its share of the weights, their gradients and the optimizer's
memory, and has a layer whole only while it computes with it (FSDP; Rajbhandari et al., ZeRO, SC 2020, stage 3).

What is saved is whole, so that a run goes on with any number of workers, sharded or not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config.schema import Config
from ..errors import ConfigError
from ..models.taps import Tapped
from .objective import Objective
from .shares import in_shares


def check_sharding(config: Config, objective: Objective) -> None:
    """Raises ConfigError for what needs the student's weights in one piece."""
    if "student" not in config.scale.shard:
        return
    if config.engine.ema:
        raise ConfigError("scale.shard: student does not go with engine.ema, which keeps whole weights: remove one")
    for label, distiller in objective.by_label():
        if distiller.stages():
            raise ConfigError(
                f"scale.shard: student does not go with loss '{label}', whose stages train parts of the student: remove"
                " one of them"
            )
    if objective.deployed() is not objective.student.model:
        raise ConfigError("scale.shard: student does not go with a loss that gives the student another head")


def shard(network: Tapped, device: torch.device) -> None:
    """Share the weights of a network out over the workers, a block at a time. The classifier, which losses may read,
    stays in the outermost group: that is whole from the forward pass to the end of the backward pass."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network.to(memory_format=torch.contiguous_format)  # the only one that can be shared out
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in _blocks(network.model):
        fully_shard(block, mesh=mesh)
    fully_shard(network.model, mesh=mesh)


def _blocks(model: nn.Module) -> list[nn.Module]:
    found = []
    for child in model.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += [block for block in child if any(True for _ in block.parameters())]
        elif not isinstance(child, nn.Linear) and any(True for _ in child.parameters()):
            found.append(child)
    return found


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of them in shares. Every worker must call it."""
    return {name: x.full_tensor() if in_shares(x) else x for name, x in state.items()}


def load_whole(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Each worker takes its shares of whole tensors, where it has shares."""
    own = network.state_dict()
    network.load_state_dict({name: _like(x, own.get(name)) for name, x in state.items()})


def by_share(parameters: list[nn.Parameter]) -> list[nn.Parameter] | list[dict]:
    """For an optimizer: where some are in shares, groups of these and of the whole ones, which no step takes at
    once."""
    groups = [[p for p in parameters if in_shares(p) is shared] for shared in (True, False)]
    return [{"params": group} for group in groups if group] if groups[0] else parameters


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict:
    """Its state as of one group of whole parameters. Every worker must call it."""
    state = optimizer.state_dict()
    state["state"] = {i: whole(memory) for i, memory in state["state"].items()}
    everything = [i for group in state["param_groups"] for i in group["params"]]
    settings = {k: v.item() if isinstance(v, Tensor) else v for k, v in state["param_groups"][0].items()}
    state["param_groups"] = [{**settings, "params": everything}]
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """The reverse, for whatever groups it has."""
    own = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    memory = {i: {k: _like(x, parameters[i]) for k, x in m.items()} for i, m in state["state"].items()}
    settings = state["param_groups"][0]
    kept = ("params", "fused", "foreach", "capturable")  # how it works here, whatever wrote the state
    groups = [{**settings, **{k: group[k] for k in kept if k in group}} for group in own]
    optimizer.load_state_dict({**state, "state": memory, "param_groups": groups})


def _like(x, own):
    if not (in_shares(own) and isinstance(x, Tensor) and x.shape == own.shape):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(own.device), own.device_mesh, own.placements)


@torch.no_grad()
def clip_norm(parameters: list[nn.Parameter], largest: float) -> None:
    """`clip_grad_norm_` over parameters of which some are in shares. Every worker must call it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [g.norm().full_tensor() if in_shares(g) else g.norm() for g in gradients]
    factor = (largest / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
