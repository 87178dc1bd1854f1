"""From the `student` or `teacher` section of a config to a network with its layers and normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError
from torch import nn

from ..blame import blaming
from ..config.schema import LayersConfig, ModelConfig
from ..errors import ConfigError, PluginError, did_you_mean
from ..specs import Layers, ModelSpec
from .factory import call_factory
from .prune import narrow


@dataclass
class Built:
    """normalize: (mean, deviation) that the published weights want, for pictures scaled to 0..1; None: the data's."""

    model: nn.Module
    layers: Layers
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def build_model(config: ModelConfig, registry, num_classes: int, in_channels: int) -> Built:
    """The network that `config` names, with published `weights` where asked. `checkpoint` is not read here.

    The layers are those of the config; where it is silent, those in the network's attribute `kdray_layers` (where
    its module names depend on options), else those of its spec. Raises ConfigError.
    """
    if config.weights and config.checkpoint:
        raise ConfigError(f"model {config.model}: weights and checkpoint are both given; leave one out.")
    if ":" in config.model:
        if config.weights:
            raise ConfigError(f"model {config.model}: your own network has no published weights; use `checkpoint`.")
        built = Built(call_factory(config.model, config.options, num_classes, in_channels), Layers())
    else:
        built = _from_spec(registry.get("models", config.model), config, num_classes, in_channels)
    if config.pruned:
        narrow(built.model, config.pruned.widths, f"model {config.model}")
    layers = getattr(built.model, "kdray_layers", built.layers)
    built.layers = _override(layers, config.layers) if config.layers else layers
    return built


def _from_spec(spec: ModelSpec, config: ModelConfig, num_classes: int, in_channels: int) -> Built:
    if config.weights and config.weights not in spec.weights:
        hint = did_you_mean(config.weights, spec.weights) or " It has none: use `checkpoint`."
        raise ConfigError(f"model {spec.name} has no published weights '{config.weights}'.{hint}")
    try:
        options = spec.Options.model_validate(config.options)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"model {spec.name}: {problems}") from error
    with blaming(f"model {spec.name} could not be built"):
        model = spec.build(num_classes=num_classes, in_channels=in_channels, weights=config.weights, options=options)
        normalize = spec.normalize(config.weights) if config.weights and spec.normalize else None
    if not isinstance(model, nn.Module):
        raise PluginError(f"model {spec.name}: build() returned a {type(model).__name__}, not an nn.Module")
    return Built(model, spec.layers, normalize)


def _override(layers: Layers, config: LayersConfig) -> Layers:
    return Layers(
        head=config.head or layers.head,
        embedding=config.embedding or layers.embedding,
        features=tuple(config.features) or layers.features,
        preactivations=tuple(config.preactivations) or layers.preactivations,
        last_map=config.last_map or layers.last_map,
    )
