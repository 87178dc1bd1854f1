"""What a distiller must be like, a function a question. Each returns a remark, or raises `Failed`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..config.sections import parse_options
from ..errors import ConfigError
from ..options import Options
from .compare import assert_close, difference, joined, where
from .mixed import swapped, two_classes
from .rehearsal import Failed, Rehearsal, demand
from .scenes import SAMPLES, made_up_pictures, scene
from .subject import Subject
from .workers import WORKERS, WorkerFailed, workers

CHECKS: dict[str, Callable[[Subject], str]] = {}
"""Name to check, in the order in which they are run."""


def check(function: Callable[[Subject], str]) -> Callable[[Subject], str]:
    CHECKS[function.__name__] = function
    return function


@check
def options(subject: Subject) -> str:
    """Every option is described, and the defaults are valid."""
    fields = subject.cls.Options.model_fields
    silent = [name for name, field in fields.items() if not field.description]
    demand(not silent, f"no description: {', '.join(silent)}; write Field(…, description='…')")
    needed = sorted(name for name, field in fields.items() if field.is_required() and name not in subject.options)
    demand(not needed, f"no default: {', '.join(needed)}; give one to each, or give the check their values")
    parse_options(subject.cls.Options, subject.options)
    subject.cls.Options.model_json_schema()
    return f"{len(fields)} described" if fields else "none"


@check
def fits(subject: Subject) -> str:
    """It can be built and run with made-up networks, or says why not."""
    pairs = subject.pairs
    names: dict[str, set] = {}
    for moment in subject.moments:
        demand(
            names.setdefault(moment.phase, set(moment.terms)) == set(moment.terms),
            f"the names of the terms change from step to step: {sorted(names[moment.phase])}, {sorted(moment.terms)}",
        )
    demand(any(names.values()), "neither the main loop nor a stage has a term")
    refused = [f"not {pair}: {why}" for pair, why in subject.refusals.items() if why]
    return "; ".join([", ".join(pairs), *refused])


@check
def finite(subject: Subject) -> str:
    """Terms and gradients are numbers in float32: of ordinary, huge and silent activations, and of equal samples."""
    for pair, variant in itertools.product(subject.pairs, ("plain", "large", "dead")):
        for moment in subject.rehearsal(variant, pair, dtype=torch.float32).run():
            found = {"the term " + (k or "loss"): v for k, v in moment.terms.items()}
            found |= {f"the gradient of {k}": v for k, v in (moment.inputs | moment.parameters).items()}
            bad = [k for k, v in found.items() if v is not None and not v.isfinite().all()]
            demand(not bad, f"not finite with {variant} activations of {pair}{where(moment)}: {', '.join(bad)}")
    return "plain, large, dead"


@check
def gradients(subject: Subject) -> str:
    """They reach the student and every parameter of its own; what else it asks of the student, it reads."""
    reached, trained = set(), set()
    for moment in subject.moments:
        reached |= {place for place, gradient in moment.inputs.items() if gradient.any()}
        trained |= {name for name, gradient in moment.parameters.items() if gradient is not None}
    requires = subject.cls.requires
    kinds = requires.student - {"pictures"}
    unreached = sorted(kind for kind in kinds if not any(kind in place.split(".") for place in reached))
    demand(len(unreached) < len(kinds) or not kinds, f"no gradient reaches the student's {', '.join(unreached)}")
    for kind in unreached:
        demand(
            _is_read(subject, kind),
            f"the student's {kind} takes no gradient and does not matter to the loss: take it out of requires",
        )
    for view in requires.views if kinds and requires.student_views else ():
        demand(
            any(place.startswith(f"views.{view}.") for place in reached),
            f"no gradient reaches what the student says of the view '{view}'",
        )
    own = {name for name, p in subject.rehearsal().distiller.named_parameters() if p.requires_grad}
    demand(own <= trained, f"no gradient reaches the parameters {', '.join(sorted(own - trained))}")
    remarks = [f"{len(reached)} outputs of the student", f"{len(own)} parameters" if own else ""]
    remarks += [f"{kind} only as what is followed, without gradient" for kind in unreached]
    return ", ".join(filter(None, remarks))


@check
def teacher(subject: Subject) -> str:
    """What the networks said is left as it is, and nothing of the teacher is trained."""
    written = {place for moment in subject.moments for place in moment.written}
    demand(not written, f"it writes into {', '.join(sorted(written))}, which other losses read too: make a new tensor")
    rehearsal = subject.rehearsal()
    head = [x for x in rehearsal.setup.teacher_head or () if x is not None]
    before = [x.clone() for x in head]
    shared = {x.untyped_storage().data_ptr() for x in head}
    rehearsal.run()
    for name, p in rehearsal.distiller.named_parameters():
        demand(
            not (p.requires_grad and p.untyped_storage().data_ptr() in shared),
            f"the parameter {name} is the teacher's head and trains: register it as a buffer, or copy it",
        )
    changed = any(not torch.equal(x, y) or x.grad is not None for x, y in zip(head, before))
    demand(not changed, "the teacher's head (setup.teacher_head) was changed or got a gradient: copy or detach it")
    return "left as it is"


@check
def resume(subject: Subject) -> str:
    """Saved and restored after any step, a new instance takes the next one as if nothing had happened, bit for bit."""
    moments, state = subject.moments, subject.rehearsal(dtype=torch.float32).distiller.state_dict()
    try:
        save({name: x.contiguous() for name, x in state.items()})  # as checkpoints do
    except RuntimeError as error:
        raise Failed(f"its state cannot be saved: {error}") from error
    for number in range(1, len(moments)):
        fresh = subject.rehearsal()
        fresh.distiller.load_state_dict(moments[number - 1].state)
        different = difference(moments[number], fresh.step(number), 0)
        demand(
            not different,
            f"{different} differs after a restart{where(moments[number])}: state that steps change must be a buffer "
            "(register_buffer), not a Python attribute",
        )
    return f"{len(moments) - 1} places"


@check
def seed(subject: Subject) -> str:
    """The same seed gives the same numbers, whatever others have drawn from the global generators."""
    for disturb, why in (
        (0, "a second run of the same seed gives other numbers"),
        (1, "it draws from a global random generator: use step.generator in a step, setup.generator for buffers"),
    ):
        for ours, theirs in zip(subject.moments, subject.rehearsal(disturb=disturb).run(), strict=True):
            different = difference(ours, theirs, 0)
            demand(not different, f"{different} differs{where(ours)}: {why}")
    return "the same numbers"


@check
def two_workers(subject: Subject) -> str:
    """Two processes that share the batches give what one gives: terms, gradients and buffers, to 1e-6 in float64."""
    try:
        both = workers().rehearse(subject.cls, subject.options, subject.pairs[0])
    except WorkerFailed as error:
        raise Failed(
            f"it failed on two workers (every worker must call step.gather equally often, in the same order):\n{error}"
        ) from None
    for alone, together in zip(subject.moments, zip(*both), strict=True):
        for rank in range(WORKERS):
            different = difference(joined(together, rank), alone, 1e-6)
            demand(
                not different,
                f"{different} of worker {rank} is not that of one process{where(alone)}: what relates samples must be "
                "computed on gathered rows (step.gather), and random numbers drawn for the global batch",
            )
    return "even, uneven and small batches"


@check
def precision(subject: Subject) -> str:
    """float32, and activations rounded to bfloat16, give nearly the loss of float64."""
    # In a bf16 run the networks compute in bfloat16, and losses get their answers in float32.
    for how, rounded, tolerance in (("float32", None, 1e-2), ("bfloat16", lambda x: x.bfloat16().to(x.dtype), 0.1)):
        moments = subject.rehearsal(dtype=torch.float32, round=rounded).run()
        for exact, moment in zip(subject.moments, moments, strict=True):
            assert_close(exact, moment, tolerance, f"{how} activations")
    return "float32, bfloat16"


@check
def scope(subject: Subject) -> str:
    """It gathers if and only if its scope is `batch`."""
    gathers, told = sum(moment.gathers for moment in subject.moments), subject.cls.scope
    demand(told in ("sample", "batch"), f"scope is {told!r}; expected 'sample' or 'batch'")
    demand(not (told == "sample" and gathers), "scope is 'sample', but it gathers over the workers: say 'batch'")
    demand(not (told == "batch" and not gathers), "scope is 'batch', but it never gathers: say 'sample'")
    return told


@check
def cache(subject: Subject) -> str:
    """Whether a cache can stand in for the teacher; then half precision, as caches have it, must do."""
    live = sorted(subject.cls.requires.teacher - {"logits", "embedding", "head"})
    if not subject.cls.requires.teacher:
        return "reads no teacher"
    if live:
        return f"no: it needs a live teacher for {', '.join(live)}"
    halved = subject.rehearsal(round=lambda x: x.half().to(x.dtype), teacher_only=True).run()
    for exact, moment in zip(subject.moments, halved, strict=True):
        assert_close(exact, moment, 0.05, "a teacher in float16")
    return f"yes: {', '.join(sorted(subject.cls.requires.teacher))}"


@check
def scheduled(subject: Subject) -> str:
    """Options that a config may move are read at every step."""
    remarks = []
    for name in sorted(subject.cls.scheduled):
        given = parse_options(subject.cls.Options, subject.options)
        demand(name in subject.cls.Options.model_fields, f"scheduled names '{name}', which is no option")
        demand(type(getattr(given, name)) in (int, float), f"scheduled option '{name}' is no number")
        value = _another_value(subject, given, name)
        start = subject.rehearsal().first_of_main
        state = subject.moments[start - 1].state if start else None
        moved = subject.rehearsal()
        anew = Rehearsal(subject.cls, {**subject.options, name: value}, moved.scene)
        moved.distiller.options = given.model_copy(update={name: value})
        for rehearsal in (moved, anew):
            if state:
                rehearsal.distiller.load_state_dict(state)
        has_effect = False
        for number in range(start, len(subject.moments)):
            ours, theirs = moved.step(number), anew.step(number)
            different = difference(ours, theirs, 0)
            demand(
                not different,
                f"{different} with '{name}' moved to {value} is not that of a distiller built with it: read "
                f"self.options.{name} in forward, every time",
            )
            has_effect |= bool(difference(ours, subject.moments[number], 0))
        remarks.append(name if has_effect else f"{name} (without effect here)")
    return ", ".join(remarks) or "none"


@check
def mixed(subject: Subject) -> str:
    """Whether it goes with mixed pictures (data.mix); if it says `mixes`, the two samples of one are alike."""
    if not subject.cls.mixes:
        try:
            subject.rehearsal(mixed=two_classes).run()
        except ConfigError as error:
            return f"no: {error}"
        return "yes: it reads no classes"
    alone = subject.rehearsal(mixed=lambda batch: replace(two_classes(batch), share=torch.ones(len(batch.index)))).run()
    for plain, moment in zip(subject.moments, alone, strict=True):
        different = difference(plain, moment, 1e-6)
        demand(not different, f"{different} of pictures with a share of 1 is not that of unmixed ones{where(plain)}")
    one, other = (subject.rehearsal(mixed=how).run() for how in (two_classes, swapped))
    for ours, theirs in zip(one, other, strict=True):
        different = difference(ours, theirs, 1e-6)
        demand(not different, f"{different} changes where batch.target and batch.partner change places{where(ours)}")
    return "yes: batch.target and batch.partner by batch.share"


@check
def last_batch(subject: Subject) -> str:
    """An epoch's last batch may be small."""
    for pair in subject.pairs:
        for moment in subject.rehearsal(pair=pair, main=(2, 3)).run():
            bad = [name or "loss" for name, term in moment.terms.items() if not term.isfinite()]
            demand(not bad, f"not finite with a batch of two or three rows{where(moment)}: {', '.join(bad)}")
    return "2 and 3 rows"


@check
def stages(subject: Subject) -> str:
    """Every stage trains something, or fills buffers."""
    rehearsal = subject.rehearsal()
    declared = [phase.stage for phase in rehearsal.trainable.phases if phase.stage]
    names = [stage.name for stage in declared]
    demand(len(set(names)) == len(names), f"two stages have one name: {', '.join(names)}")
    parameters, before = set(rehearsal.distiller.parameters()), {}
    initial = {k: v.clone() for k, v in rehearsal.distiller.state_dict().items()}
    for stage in declared:
        foreign = [m for m in stage.modules if not set(m.parameters()) <= parameters]
        demand(not foreign, f"stage '{stage.name}' trains a module that the distiller has not registered: {foreign}")
        moments = [moment for moment in subject.moments if moment.phase == stage.name]
        before, after = before or initial, moments[-1].state
        student = any(g is not None and g.any() for moment in moments for g in moment.inputs.values())
        changed = [name for name in after if not torch.equal(after[name], before[name])]
        demand(student or changed, f"stage '{stage.name}' changes nothing")
        demand(student or not stage.student, f"stage '{stage.name}' trains the student, but no gradient reaches it")
        before = after
    return ", ".join(names) or "none"


@check
def deployed(subject: Subject) -> str:
    """The network that is exported answers with logits."""
    rehearsal = subject.rehearsal()
    network = rehearsal.distiller.deployed(rehearsal.scene.answering(subject.cls.requires))
    if network is None:
        return "the student"
    demand(isinstance(network, nn.Module), f"deployed() gave a {type(network).__name__}; expected an nn.Module or None")
    with torch.no_grad():
        answer = network.double().eval()(made_up_pictures("", SAMPLES)[:4])
    shape = (4, rehearsal.scene.num_classes)
    demand(
        isinstance(answer, Tensor) and answer.shape == shape,
        f"the deployed network gives {tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__} "
        f"for 4 pictures of {shape[1]} classes; expected logits {shape}",
    )
    return type(network).__name__


def _another_value(subject: Subject, given: Options, name: str) -> float:
    value = getattr(given, name)
    for other in (value * 1.5, value * 0.5, value + 0.25, value - 0.25, value + 1, value - 1):
        other = type(value)(other)
        try:
            parse_options(subject.cls.Options, {**subject.options, name: other})
        except ValueError:
            continue
        if other != value:
            return other
    raise Failed(f"no other valid value found for the scheduled option '{name}' than {value}")


def _is_read(subject: Subject, kind: str) -> bool:
    """Whether the loss is another one, or none at all, without that output of the student."""
    requires = subject.cls.requires
    without = replace(requires, student=requires.student - {kind})
    cls = type(subject.cls.__name__, (subject.cls,), {"requires": without, "__module__": subject.cls.__module__})
    try:
        moments = Rehearsal(cls, subject.options, scene(subject.pairs[0])).run()
    except Exception:
        return True
    return any(ours.terms != theirs.terms for ours, theirs in zip(subject.moments, moments, strict=True))
