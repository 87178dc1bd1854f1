"""Read a network's inner outputs with forward hooks, by module paths, without touching the network's code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..blame import cause
from ..distiller import OUTPUTS, Outputs, Shapes
from ..errors import ConfigError, KdrayError, did_you_mean
from ..specs import Layers


class _Log:
    """What the hooks of one network write down: path to value, while a forward pass of its `Tapped` is under way."""

    def __init__(self):
        self.on = False
        self.seen: dict[str, Tensor] = {}
        self.versions: dict[str, int] | None = None  # torch's counter of in-place changes, kept while probing


class _Tap:
    """The hook on one path. Not a closure: so a deep copy of the network (EMA) writes into its own log."""

    def __init__(self, path: str, log: _Log):
        self.path, self.log = path, log

    def before(self, module, args):
        self._take(args[0] if args else None)

    def after(self, module, args, output):
        self._take(output)

    def _take(self, value):
        if self.log.on:
            self.log.seen[self.path] = value
            if self.log.versions is not None and isinstance(value, Tensor):
                self.log.versions[self.path] = value._version


class Tapped(nn.Module):
    """A network that answers with `Outputs`: the logits always, and those of `wants` that were asked for.

    `wants` is a subset of `kdray.distiller.OUTPUTS`; only its layers carry hooks. A module that runs several times in
    one pass counts with its last run. Replace modules (SyncBatchNorm) before tapping: hooks stay on the old ones.
    `name` stands in error messages. Raises ConfigError where a path does not exist or a wanted output has no layer.
    """

    def __init__(
        self, model: nn.Module, layers: Layers, wants: frozenset[str] | set[str] = frozenset(), name: str = ""
    ):
        super().__init__()
        if unknown := set(wants) - OUTPUTS:
            raise ValueError(f"unknown outputs {sorted(unknown)}; known: {sorted(OUTPUTS)}")
        self.model, self.layers, self.wants = model, layers, frozenset(wants)
        self.name = name or f"network {type(model).__name__}"
        self._log = _Log()
        self._compiled: tuple[int, Callable[[Tensor], Tensor]] | None = None
        self._modules_by_path = dict(model.named_modules())
        self._maps = {kind: getattr(layers, kind) if kind in wants else () for kind in ("features", "preactivations")}
        self._head_path = self._embedding_path = ""
        wants = self.wants
        if wants & {"head", "last_map"} or ("embedding" in wants and not layers.embedding):
            self._head_path = self._find_head(layers.head)
        if wants & {"embedding", "last_map"}:
            self._embedding_path = layers.embedding or f"{self._head_path}:input"
            self._tap(self._embedding_path, "embedding")
        for kind, paths in self._maps.items():
            if kind in wants and not paths:
                raise ConfigError(
                    f"{self.name}: a loss reads its {kind}, but which layers these are is not known. "
                    f"Name them in its section: `layers: {{{kind}: [...]}}`.{self._top_level()}"
                )
            for i, path in enumerate(paths):
                self._tap(path, f"{kind}[{i}]")
        self._last_map_path = layers.last_map or (layers.features[-1] if layers.features else "")
        if "last_map" in wants:
            if not self._last_map_path:
                raise ConfigError(
                    f"{self.name}: a loss reads the last map before the pooling, but which layer gives it is not known."
                    f" Name it in its section: `layers: {{last_map: ...}}`.{self._top_level()}"
                )
            self._tap(self._last_map_path, "last_map")
        del self._modules_by_path

    @property
    def head(self) -> tuple[Tensor, Tensor | None] | None:
        """The classifier's weight (num_classes, D) and bias, when it is wanted."""
        if "head" not in self.wants:
            return None
        head = self.model.get_submodule(self._head_path)
        return head.weight, head.bias

    def compile_for(self, rows: int) -> None:
        """Compute batches of just so many pictures by compiled code from now on."""

        def run(x: Tensor) -> Tensor:
            return self.model(x)

        # torch.compile keeps what it has compiled by the code of a function, and by default takes it for other networks
        # of the same kind too, whatever hooks those have.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        run.__code__ = run.__code__.replace(co_name=f"run_{id(self)}")
        self._compiled = rows, torch.compile(run, dynamic=False)

    def forward(self, x: Tensor) -> Outputs:
        log = self._log
        log.on = True
        try:
            compiled = self._compiled and len(x) == self._compiled[0]
            logits = self._compiled[1](x) if compiled else self.model(x)
            if not isinstance(logits, Tensor):
                raise ConfigError(
                    f"{self.name} returns a {type(logits).__name__}; it must return the logits, one tensor."
                )
            return Outputs(
                logits=logits,
                embedding=self._embedding() if self._embedding_path else None,
                features=[self._seen(path) for path in self._maps["features"]],
                preactivations=[self._seen(path) for path in self._maps["preactivations"]],
                last_map=self._seen(self._last_map_path) if "last_map" in self.wants else None,
                head=self.head,
                pictures=x if "pictures" in self.wants else None,
            )
        finally:
            log.on = False
            log.seen = {}  # or the last batch's activations would outlive their step

    def _seen(self, path: str) -> Tensor:
        value = self._log.seen.get(path)
        if not isinstance(value, Tensor):
            what = f"gives a {type(value).__name__}, not a tensor" if path in self._log.seen else "never runs"
            raise ConfigError(f"{self.name}: layer '{path}' {what}; name another.")
        if self._log.versions is not None and value._version != self._log.versions[path]:
            raise ConfigError(
                f"{self.name}: what layer '{path}' gives is overwritten in place afterwards (`inplace=True`, `+=`), so "
                "a loss would read other values. Tap the input of the layer that overwrites it (`relu:input`), or make "
                "that one not in place."
            )
        return value

    def _embedding(self) -> Tensor:
        value = self._seen(self._embedding_path)
        if value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value.flatten(1)
        if value.ndim != 2:
            raise ConfigError(
                f"{self.name}: the embedding ('{self._embedding_path}') has shape {tuple(value.shape)}; "
                "it must be a vector a sample, (B, D) or (B, D, 1, 1). Name another layer in `layers.embedding`."
            )
        return value

    def _find_head(self, path: str) -> str:
        if path:
            if not isinstance(module := self._module(path, "head"), nn.Linear):
                raise ConfigError(f"{self.name}: layers.head: '{path}' is a {type(module).__name__}, not an nn.Linear.")
            return path
        linear = [name for name, module in self._modules_by_path.items() if isinstance(module, nn.Linear)]
        if not linear:
            raise ConfigError(
                f"{self.name}: it has no nn.Linear, so its classifier is not known. Name `layers: {{embedding: ...}}` "
                f"in its section; losses that read the head cannot be used with it."
            )
        return linear[-1]

    def _module(self, name: str, field: str) -> nn.Module:
        if name and name in self._modules_by_path:
            return self._modules_by_path[name]
        hint = did_you_mean(name, [n for n in self._modules_by_path if n]) or self._top_level()
        raise ConfigError(f"{self.name}: layers.{field}: there is no module '{name}'.{hint}")

    def _top_level(self) -> str:
        return f" Its outermost modules: {', '.join(name for name, _ in self.model.named_children())}."

    def _tap(self, path: str, field: str) -> None:
        name, colon, side = path.partition(":")
        if colon and side != "input":
            raise ConfigError(f"{self.name}: layers.{field}: '{path}' is not a path; write '{name}' or '{name}:input'.")
        module, tap = self._module(name, field), _Tap(path, self._log)
        if not colon:
            module.register_forward_hook(tap.after)
            return
        if getattr(module, "inplace", False):
            module.inplace = False  # it would overwrite the very tensor that is tapped
        module.register_forward_pre_hook(tap.before)


def probe(tapped: Tapped, example: Tensor) -> Shapes:
    """Shapes of one sample's outputs, from one dry pass over `example` (B, C, H, W), a normalised batch of any content.

    Leaves the network as it was: evaluation mode meanwhile, no gradients. Raises ConfigError where the network cannot
    take such pictures, a layer never runs, a tapped tensor is overwritten in place, or the head is not the classifier.
    """
    modes = [(module, module.training) for module in tapped.modules()]
    tapped.eval()
    tapped._log.versions = {}
    try:
        with torch.no_grad():
            out = tapped(example)
    except (torch.OutOfMemoryError, KdrayError):
        raise
    except Exception as error:
        size = "×".join(str(n) for n in example.shape[1:])
        message = f"{tapped.name} cannot take pictures of {size} (channels×height×width): {cause(error)}"
        raise ConfigError(message) from error
    finally:
        tapped._log.versions = None
        for module, training in modes:
            module.training = training
    width = tapped.model.get_submodule(tapped._head_path).out_features if tapped._head_path else None
    if width is not None and (width,) != out.logits.shape[1:]:
        raise ConfigError(
            f"{tapped.name}: '{tapped._head_path}' gives {width} values, the network gives logits of shape "
            f"{tuple(out.logits.shape[1:])}: it is not the classifier. Name the right one in `layers.head`."
        )
    if out.last_map is not None:
        _check_last_map(tapped, out)
    return Shapes(
        logits=tuple(out.logits.shape[1:]),
        embedding=() if out.embedding is None else tuple(out.embedding.shape[1:]),
        features=tuple(tuple(x.shape[1:]) for x in out.features),
        preactivations=tuple(tuple(x.shape[1:]) for x in out.preactivations),
        last_map=() if out.last_map is None else tuple(out.last_map.shape[1:]),
        pictures=() if out.pictures is None else tuple(out.pictures.shape[1:]),
    )


def _check_last_map(tapped: Tapped, out: Outputs) -> None:
    """Raises ConfigError unless the spatial mean of the last map is the embedding: losses rely on it."""
    pooled = out.last_map.mean(dim=(2, 3)) if out.last_map.ndim == 4 else out.last_map
    if pooled.shape != out.embedding.shape or not torch.allclose(pooled, out.embedding, rtol=1e-2, atol=1e-3):
        raise ConfigError(
            f"{tapped.name}: the mean of '{tapped._last_map_path}' over its positions {tuple(pooled.shape[1:])} is not "
            f"the embedding {tuple(out.embedding.shape[1:])}. Name the map in front of the pooling: `layers.last_map`."
        )
