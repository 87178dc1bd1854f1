"""Evaluate one distiller on given tensors, without models, data or workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.sections import parse_options
from ..distiller import Batch, Outputs, Setup, Shapes, Step
from ..engine.precision import moved
from ..errors import ConfigError
from ..registry import Registry


@dataclass
class Evaluation:
    """terms: unweighted value by name ("" for a distiller of one term) · loss: their sum · gradients: of the loss, by
    input ("logits", "embedding", "features.0", …) and by parameter name · state: the distiller's state dict after the
    step."""

    terms: dict[str, Tensor]
    loss: Tensor
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def evaluate(
    name: str,
    options: Mapping | None = None,
    *,
    student: Outputs | Mapping,
    teacher: Outputs | Mapping | None = None,
    targets: Tensor,
    indices: Tensor | None = None,
    partners: Tensor | None = None,
    shares: Tensor | None = None,
    num_samples: int | None = None,
    num_classes: int | None = None,
    labels: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    step: int = 0,
    epoch: int = 0,
    seed: int = 0,
    teacher_head: tuple[Tensor, Tensor | None] | None = None,
    batch_size: int | None = None,
    new_student: Callable[[], nn.Module] | None = None,
    stage: str | None = None,
) -> Evaluation:
    """One step of the distiller `name` on the given outputs: forward, backward and `after_backward`.

    student, teacher: `Outputs`, or a mapping with the same names (`{"logits": …, "embedding": …, "features": […],
    "views": {name: {…}}}`). stage: evaluate the loss of the stage of that name instead of the main loop's.
    targets (B,): classes. partners, shares (B,): `Batch.partner` and `Batch.share` of mixed pictures. indices (B,):
    positions in the training set, 0 … B − 1 when absent. labels (num_samples,): classes of the whole training set; when
    absent, the given targets at their indices and classes in turn elsewhere.
    state: a state dict, or part of one, to start from. The arithmetic follows the student's dtype. Raises ConfigError
    for unknown names and options.
    """
    spec = Registry.default().get("distillers", name)
    student, teacher = _outputs(student, grad=True), _outputs(teacher or {}, grad=False)
    example = next(iter(named(student).values()), None)
    example = next(iter(named(teacher).values())) if example is None else example
    rows = len(targets)
    indices = torch.arange(rows) if indices is None else indices
    num_samples = num_samples or int(indices.max()) + 1
    if num_classes is None:
        num_classes = student.logits.shape[1] if student.logits is not None else int(targets.max()) + 1
    if labels is None:
        labels = torch.arange(num_samples) % num_classes
        labels[indices] = targets

    setup = Setup(
        student=shapes_of(student),
        teacher=shapes_of(teacher) if named(teacher) else None,
        num_classes=num_classes,
        num_samples=num_samples,
        labels=labels,
        generator=torch.Generator().manual_seed(seed),
        teacher_head=teacher_head or teacher.head,
        batch_size=batch_size or rows,
        new_student=new_student,
    )
    torch.manual_seed(seed)
    distiller = spec.cls(parse_options(spec.cls.Options, dict(options or {})), setup)
    moved(distiller, example.device, example.dtype)
    if state:
        unknown = sorted(set(state) - set(distiller.state_dict()))
        if unknown:
            raise ConfigError(f"distiller '{name}' has no state {unknown}; it has {sorted(distiller.state_dict())}")
        distiller.load_state_dict(dict(state), strict=False)

    batch = Batch(index=indices, target=targets, epoch=epoch, size=rows, partner=partners, share=shares)
    at = Step(number=step, epoch=epoch, generator=torch.Generator().manual_seed(seed + step))
    forward = distiller
    if stage is not None:
        stages = {s.name: s for s in distiller.stages()}
        if stage not in stages:
            raise ConfigError(f"distiller '{name}' has no stage '{stage}'; it has {sorted(stages)}")
        forward = stages[stage].loss
    result = forward(student, teacher, batch, at)
    terms = result if isinstance(result, dict) else {"": result}
    loss = sum(terms.values(), torch.zeros((), dtype=example.dtype))
    if loss.requires_grad:
        loss.backward()
    distiller.after_backward(batch, at)
    if stage is not None and stages[stage].finish:
        stages[stage].finish()
    gradients = {k: x.grad for k, x in named(student).items() if x.grad is not None}
    gradients |= {k: p.grad for k, p in distiller.named_parameters() if p.grad is not None}
    return Evaluation(
        terms={k: v.detach() for k, v in terms.items()},
        loss=loss.detach(),
        gradients=gradients,
        state={k: v.detach().clone() for k, v in distiller.state_dict().items()},
    )


_SINGLE, _LISTS = ("logits", "embedding", "last_map", "pictures"), ("features", "preactivations")


def _outputs(given: Outputs | Mapping, grad: bool) -> Outputs:
    given = dict(vars(given) if isinstance(given, Outputs) else given)

    def leaf(x):
        return x.detach().clone().requires_grad_(grad) if x.is_floating_point() else x

    for key in _SINGLE:
        if given.get(key) is not None:
            given[key] = leaf(given[key])
    for key in _LISTS:
        given[key] = [leaf(x) for x in given.get(key) or []]
    if given.get("head") is not None:
        given["head"] = tuple(None if x is None else leaf(x) for x in given["head"])
    given["views"] = {name: _outputs(view, grad) for name, view in (given.get("views") or {}).items()}
    return Outputs(**given)


def named(outputs: Outputs) -> dict[str, Tensor]:
    """Every tensor by its place: `logits`, `features.0`, `head.weight`, `views.strong.logits`."""
    found = {k: getattr(outputs, k) for k in _SINGLE if getattr(outputs, k) is not None}
    for key in _LISTS:
        found |= {f"{key}.{i}": x for i, x in enumerate(getattr(outputs, key))}
    if outputs.head is not None:
        found |= {f"head.{k}": x for k, x in zip(("weight", "bias"), outputs.head) if x is not None}
    for name, view in outputs.views.items():
        found |= {f"views.{name}.{k}": x for k, x in named(view).items()}
    return found


def shapes_of(outputs: Outputs) -> Shapes:
    """Shapes of one sample's outputs."""
    single = {k: tuple(getattr(outputs, k).shape[1:]) for k in _SINGLE if getattr(outputs, k) is not None}
    return Shapes(**single, **{k: tuple(tuple(x.shape[1:]) for x in getattr(outputs, k)) for k in _LISTS})
