"""Networks with fewer channels: taken out of a trained one, by the library Torch-Pruning; and made as narrow again.

What is left of each layer is a mapping by module path: the first two sizes of its weight (`[out, in]` of a convolution
or linear layer, by group where it has groups), the only one of a normalisation. With it alone, without Torch-Pruning
and without the trained network, the narrow one is built.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..blame import cause
from ..errors import ConfigError, did_you_mean

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Widths = dict[str, list[int]]


def prune(model: nn.Module, share: float, head: nn.Module, pictures: Tensor, name: str) -> None:
    """Take `share` of the channels, rounded up, out of every layer of a trained network: those of the smallest L2 norm,
    over all the layers that must lose them together. `head` keeps its outputs. pictures: (B, C, H, W), normalised.

    Raises ConfigError where Torch-Pruning is not installed or cannot do it.
    """
    if find_spec("torch_pruning") is None:
        raise ConfigError("student.prune needs Torch-Pruning: pip install 'kdray[prune]', or pip install torch-pruning")
    import torch_pruning

    training, wanted = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(True)  # the layers that belong together are found along the graph of gradients
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            pictures,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=[head],
        )
        with torch.enable_grad():
            pruner.step()
            model.zero_grad(set_to_none=True)
        model(pictures)
    except Exception as error:  # it and the narrower network raise whatever they stumble over
        raise ConfigError(f"student.prune: {name} cannot be pruned by Torch-Pruning: {cause(error)}") from error
    for parameter, required in zip(model.parameters(), wanted):
        parameter.requires_grad_(required)
    model.train(training)


def widths(full: nn.Module, pruned: nn.Module, pictures: Tensor, name: str) -> Widths:
    """What is left of each layer of `full` that lost something in `pruned`. Raises ConfigError where `narrow` would
    not make the same network of it."""
    modules, found = dict(full.named_modules()), {}
    for path, module in pruned.named_modules():
        weight, before = getattr(module, "weight", None), getattr(modules[path], "weight", None)
        if isinstance(weight, Tensor) and weight.shape != before.shape:
            found[path] = list(weight.shape[:2])
    if not found:
        raise ConfigError(f"student.prune: {name} has no layer that could lose a channel")
    try:
        narrow(full, found, name)
        full.load_state_dict(pruned.state_dict())
        with torch.no_grad():
            same = torch.allclose(full.eval()(pictures), pruned.eval()(pictures), rtol=1e-4, atol=1e-5)
    except (ConfigError, RuntimeError) as error:
        raise ConfigError(f"student.prune: {name} cannot be built again as it is pruned: {cause(error)}") from error
    finally:
        pruned.train()
    if not same:
        raise ConfigError(f"student.prune: {name} cannot be built again as it is pruned: it answers otherwise")
    return found


def narrow(model: nn.Module, widths: Widths, name: str) -> None:
    """Make the layers of a new network as narrow as `widths` says; of its initial weights the first are left. Raises
    ConfigError for widths that are not of this network."""
    modules = dict(model.named_modules())
    for path, sizes in widths.items():
        if path not in modules:
            raise ConfigError(f"{name}: pruned.widths: it has no layer '{path}'.{did_you_mean(path, modules)}")
        module = modules[path]
        is_norm = isinstance(module, NORMS)
        if not (is_norm or isinstance(module, (*CONVOLUTIONS, nn.Linear))):
            raise ConfigError(f"{name}: layer '{path}', a {type(module).__name__}, cannot be made narrower")
        if len(sizes) != (1 if is_norm else 2) or any(not 0 < n <= most for n, most in zip(sizes, module.weight.shape)):
            most = list(module.weight.shape[:2])
            raise ConfigError(f"{name}: pruned.widths: layer '{path}' of {most} cannot become {sizes}")
        _narrow(module, sizes)


def _narrow(module: nn.Module, sizes: list[int]) -> None:
    kept = tuple(slice(size) for size in sizes)
    if isinstance(module, NORMS):
        module.num_features = sizes[0]
        module.running_mean, module.running_var = module.running_mean[kept], module.running_var[kept]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes
    else:
        if module.groups == module.in_channels > 1:  # each channel for itself
            module.groups = sizes[0]
        module.out_channels, module.in_channels = sizes[0], sizes[1] * module.groups
    module.weight = nn.Parameter(module.weight.detach()[kept].clone(memory_format=torch.contiguous_format))
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[: sizes[0]].clone())
