"""The training loop: the same in this process, in a Ray worker and in a test.

build the parts · resume from the newest checkpoint · measure the teachers
for each phase: the first stages of the losses, then the main loop
    for each epoch
        for each global batch: my share of it
            pictures of view (epoch mod views)  ->  teachers, student  ->  terms
            weighted sum  ->  backward  ->  after_backward of each loss  ->  optimizer at every `accumulate` batches
        main loop: evaluate · keep the best
        checkpoint: copied, and written while the next epoch trains
"""

from __future__ import annotations

import gc
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from ..clock import Part, awaited, so_far, timed
from ..config.load import digest
from ..config.schema import Config
from ..data.build import Data
from ..data.feed import Feed
from ..data.views import batches, share, shares, stream
from ..distiller import Batch, Step
from ..errors import ConfigError, PluginError, Stopped
from ..models.rounding import InputRanges
from ..registry import Registry
from ..teacher.cached import CachedTeacher
from ..teacher.live import LiveTeacher
from ..teacher.placed import Asking
from ..teacher.setup import Place
from ..teacher.teachers import AVERAGE, Stored, Teacher
from . import checkpoint
from .allocator import keep_freed_memory
from .batchnorm import synchronise
from .beside import Beside
from .build import Parts, build, new_optimizer
from .checkpoint import Counters
from .checks import check_last_batch, check_replicas, check_same_data, finite_gradients, not_finite
from .context import Context, reseed
from .ema import EMA
from .evaluate import evaluate
from .labels import batch_for
from .listening import Listener
from .objective import naming
from .phases import Trainable, phases
from .recording import Dials, Inputs, Recorder, Terms, obstacle
from .schedule import loss_weight, lr_factor, option_value
from .sharding import by_share, check_sharding, clip_norm, load_optimizer, load_whole, shard, whole, whole_optimizer
from .shares import in_shares
from .sums import Sums
from .trace import Trace
from .uncompiled import distributed
from .writer import Writer

LOST_IN_A_ROW = 20
"""Batches that `engine.nonfinite: skip` leaves out at most, one after the other."""
TOTAL = "=loss"
"""The weighted sum among the sums of an epoch's terms; no label has such a name."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a run. All paths are absolute and seen by every worker."""

    config: Config
    folder: Path
    data_root: Path
    teacher_checkpoints: dict[str, str] = field(default_factory=dict)
    """The file of its weights by teacher."""
    caches: dict[str, Place] = field(default_factory=dict)
    """Of those teachers whose stored answers are used."""
    placed: dict[str, Asking] = field(default_factory=dict)
    """The way to those teachers that answer elsewhere."""
    data: str = ""
    """Fingerprint of the data, where it is known: another node may hold others under the same path."""
    test: bool = True
    """Whether the test set is looked at. A trial of a search does not."""
    profile: bool = False
    """Whether the first worker tells where its time goes."""


@dataclass(frozen=True)
class BatchPlace:
    """Where a batch stands: the `number`-th of the epoch's `batches`, of `size` samples over all workers, of which this
    one has `mine` (b,), their positions in the split; `index` is the same on the device."""

    number: int
    batches: int
    size: int
    mine: Tensor
    index: Tensor
    accumulate: int = 1

    @property
    def ends_update(self) -> bool:
        """Whether the optimizer steps after it: at every `accumulate` batches, and at the epoch's end."""
        return (self.number + 1) % self.accumulate == 0 or self.number + 1 == self.batches

    @property
    def batches_of_update(self) -> int:
        """Batches that share its update: fewer at an epoch's end."""
        return min(self.accumulate, self.batches - self.number // self.accumulate * self.accumulate)


class Log(Protocol):
    """Where the first worker tells what happens, and hears what is asked."""

    def row(self, row: dict) -> None: ...

    def rewind(self, step: int) -> None: ...

    def guard(self) -> None: ...

    def progress(self, **now) -> None: ...

    def asked(self) -> str: ...

    def answer(self, what: str) -> None: ...


def train(job: Job, registry: Registry, context: Context, log: Log, data: Data | None = None) -> None:
    """Train to the end of the schedule. Every worker calls it; `log` is used by the first alone. data: where it has
    been loaded already.

    Raises Stopped, on every worker at the same step, when the log says that the run is asked to stop."""
    if context.device.type == "cpu":
        keep_freed_memory()
    parts = build(
        *(job.config, registry, job.data_root, job.teacher_checkpoints, context.device, job.caches, job.placed), data
    )
    if job.data:
        check_same_data(parts.data, job.data)
    Training(job, parts, registry, context, log).run()


class Training:
    @timed(Part.NETWORKS)
    def __init__(self, job: Job, parts: Parts, registry: Registry, context: Context, log: Log):
        self.config, self.folder, self.parts, self.context, self.log = job.config, job.folder, parts, context, log
        config, device = job.config, context.device
        check_last_batch(config, len(parts.data.train), context.world_size)
        self.objective = objective = parts.objective
        if context.world_size > 1 and config.engine.batch_norm == "global":
            synchronise(objective, device)
        self.sharded = context.world_size > 1 and "student" in config.scale.shard
        check_sharding(config, objective)
        if self.sharded:
            shard(objective.student, device)
        if context.world_size > 1 and "teachers" in config.scale.shard:
            for teacher in parts.teachers.by_name.values():
                if isinstance(teacher, LiveTeacher):
                    shard(teacher.network, device)
        self.network = objective.deployed()
        self.ranges = InputRanges(objective.student)
        self.phases = phases(objective.by_label())
        self.options = {label: distiller.options for label, distiller in objective.by_label()}
        self.trainable = Trainable(objective, self.phases)
        self.build_optimizer = partial(new_optimizer, config, registry)
        self.labels = parts.data.train.labels.to(device)
        self.splits = [s for s in ("validation", "test") if getattr(parts.data, s) and (job.test or s != "test")]
        self.feed = Feed(parts.data.train, parts.data.augment, config.data.threads, device)
        self.view_feeds = {
            name: Feed(parts.data.train, pipeline, config.data.threads, device)
            for name, pipeline in parts.views.items()
        }
        asked = (distiller.requires for _, distiller in objective.by_label())
        self.seen = {name for requires in asked if requires.student_views for name in requires.views}
        """The views that the student sees."""
        # Of the losses' draws, on the CPU and on the device; seeded at every step.
        self.generators = [torch.Generator(place) for place in dict.fromkeys(("cpu", device.type))]
        self.counters = Counters(digest=digest(config))
        self.ema = None
        self._go_on()
        self.writer, self.saved_at = Writer(job.folder, config.checkpoint.keep), self.counters.step
        self.lost: list[str] = []  # terms of the step that is being left out
        self.spoiled = False  # whether a batch of the update that is being gathered was left out
        self.listener, self.asked = Listener(context, log, self.counters.step), ""
        traced = job.profile and context.is_first
        self.trace = Trace(job.folder / "profile" / "trace.json" if traced else None, device)
        self.profile = job.profile

    # -- set-up ------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """From the newest whole checkpoint, which the first worker looks for; or from the beginning."""
        folder, digest, path, loaded, damage = self.folder / "checkpoints", self.counters.digest, None, None, []
        if self.context.is_first:
            path, loaded, damage = checkpoint.newest(folder, digest)
        (step,) = self.context.tell([int(path.name.removeprefix("step-")) if path else -1])
        if step < 0:
            self._begin_phase()
        else:
            self._resume(loaded or checkpoint.load(folder / checkpoint.name_of(step), digest))
        if self.context.is_first:
            if path:
                checkpoint.restore_best(path, self.folder)
            self.log.rewind(step)
            for why in damage:
                self._row({"kind": "damaged", "message": why})

    def _resume(self, loaded: checkpoint.Loaded) -> None:
        self.counters, tensors, optimizer = loaded
        load_whole(self.parts.student.model, tensors["student"])
        self.objective.load_state_of_distillers(tensors.get("distillers", {}))
        self._begin_phase()
        if self.optimizer:
            load_optimizer(self.optimizer, optimizer)
        if self.ema:
            self.ema.load(tensors["ema"])

    def _begin_phase(self) -> None:
        """What the phase of the counters needs: its parameters, an optimizer without memory, the averaged weights."""
        self.phase = self.objective.phase = self.phases[self.counters.phase]
        self.parameters = self.trainable.begin(self.phase)
        self.optimizer = self.build_optimizer(by_share(self.parameters)) if self.parameters else None
        if self.phase.stage is None and self.config.engine.ema:
            self.ema = EMA(self.network, self.config.engine.ema)
        self.terms: list[str] | None = None  # their names, from the first step on
        self._begin_recording()
        self.wrapped = None
        gc.collect()  # the last phase's wrapper takes its hooks off the parameters when it goes
        self.wrapped = self._distribute()

    def _begin_recording(self) -> None:
        """Steps of the main loop are recorded where they can be."""
        context, main = self.context, self.phase.stage is None
        why_not = obstacle(self.config, context, self.objective.by_label(), self.optimizer) if main else "a stage"
        self.dials = Dials(context.device, self.parts.precision.dtype, on_device=not why_not)
        self.recorder = None
        self.objective.beside = Beside(None if why_not else context.device)
        if not why_not:
            size = min(self.config.data.batch_size, len(self.parts.data.train))
            self.recorder = Recorder(self._work, self.generators[-1], size, ", ".join(self.objective.labels))
            if self.config.engine.compile:
                for network in (self.objective.student, *self.parts.teachers.networks()):
                    network.compile_for(size)
        if main and context.device.type == "cuda":
            self._row(
                {"kind": "recording", "obstacle": why_not, "compiled": not why_not and self.config.engine.compile}
            )

    def _distribute(self) -> nn.Module:
        if self.context.world_size == 1 or all(in_shares(p) for p in self.parameters):
            return self.objective  # what is in shares looks after itself
        ignored = [name for name, p in self.objective.named_parameters() if in_shares(p)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.objective, ignored)
        return distributed(
            self.objective,
            broadcast_buffers=False,  # banks and statistics are kept equal by gathering
            gradient_as_bucket_view=True,
            find_unused_parameters=self._some_parameter_is_unused(),
        )

    def _some_parameter_is_unused(self) -> bool:
        """Whether one may be: layers that a stage does not reach, a head that a step does not use, or the classifier
        where only embeddings are compared."""
        distillers = self.objective.distillers
        reads_logits = any("logits" in distiller.requires.student for distiller in distillers)
        return len(self.phases) > 1 or bool(list(distillers.parameters())) or not reads_logits

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        # A recording cannot be made on the default stream, nor of a backward pass whose first one was there.
        try:
            with torch.cuda.stream(self._stream()):
                self._run()
        except KeyboardInterrupt:
            self.writer.abandon()
            raise
        except BaseException:
            with suppress(
                BaseException
            ):  # what ended the training is told, not what this may add: a scheduler may end us
                self._tell_written(wait=True)
            raise

    def _stream(self) -> torch.cuda.Stream | None:
        if self.context.device.type != "cuda" or self.context.world_size > 1:
            return None
        torch.cuda.synchronize(self.context.device)
        return torch.cuda.Stream(self.context.device)

    def _run(self) -> None:
        self.started = time.monotonic() - self.counters.seconds
        if "test" not in self.splits:
            pass  # the teachers are measured on it too
        elif self.counters.step == 0 and self.counters.teacher is None:
            self._measure_teachers()
        elif self.context.is_first:
            self._begin_caches()
        while True:
            while self.counters.epoch < self._epochs():
                self._epoch()
                if self.asked and not self._is_done():
                    if self.saved_at < self.counters.step:
                        self._checkpoint()
                    self._answer()
            if self.phase.stage is None:
                break
            self.counters.phase, self.counters.epoch = self.counters.phase + 1, 0
            self._begin_phase()
        self._tell_written(wait=True)
        state = self.student_state()
        if self.context.is_first:
            self.log.guard()
            checkpoint.replace_safetensors(state, self.folder / "student.safetensors")
        if self.profile:
            self._row({"kind": "profile", "seconds": so_far(), "operators": self.trace.operators})
        self.context.barrier()

    def _is_done(self) -> bool:
        return self.phase.stage is None and self.counters.epoch == self._epochs()

    def _answer(self) -> None:
        """After a checkpoint that was asked for, on its own or to stop."""
        asked, self.asked = self.asked, ""
        self._tell_written(wait=True)
        if self.context.is_first:
            self.log.answer(asked)
        if asked == "stop":
            raise Stopped(f"stopped at step {self.counters.step}")

    def _epochs(self) -> int:
        return self.phase.stage.epochs if self.phase.stage else self.config.schedule.epochs

    def _measure_teachers(self) -> None:
        teachers, measured = self.parts.teachers, {}
        for name, teacher in teachers.by_name.items():
            measured[name] = result = self._accuracy_of(name, teacher)
            section = self.config.all_teachers[name]
            where = "teacher" if self.config.teacher else f"teachers.{name}"
            if section.min_accuracy is not None and result["top1"] < section.min_accuracy:
                raise ConfigError(
                    f"{where}: its accuracy on the test set is {result['top1']:.2%}, below {where}.min_accuracy "
                    f"({section.min_accuracy:.2%}): a wrong checkpoint, "
                    f"a wrong normalisation ({where}.normalize), or other data than it was trained on"
                )
            self._row({"kind": "teacher", "name": name, **result, "parameters": teacher.count, **_cache_of(teacher)})
        if AVERAGE in teachers.of_loss.values() and all(isinstance(t, LiveTeacher) for t in teachers.by_name.values()):
            measured[AVERAGE] = self._evaluate(partial(teachers.logits, AVERAGE), "test", "teacher")
            self._row({"kind": "teacher", "name": AVERAGE, **measured[AVERAGE]})
        self.counters.teacher = measured or None

    def _accuracy_of(self, name: str, teacher: Teacher) -> dict[str, float]:
        """On the test set: as measured when the cache was made, or where the teacher is placed, else now."""
        if teacher.accuracy:
            return teacher.accuracy
        live = teacher.live if isinstance(teacher, CachedTeacher) else teacher
        result = self._evaluate(lambda pictures: live(pictures).logits, "test", "teacher")
        if isinstance(teacher, CachedTeacher) and self.context.is_first:
            teacher.begin(result)
        return result

    def _begin_caches(self) -> None:
        """Where a run goes on whose caches somebody has removed meanwhile."""
        for name, teacher in self.parts.teachers.by_name.items():
            if isinstance(teacher, CachedTeacher) and teacher.live:
                teacher.begin(self.counters.teacher[name])

    @timed(Part.STEPS)
    def _epoch(self) -> None:
        counters, config, context = self.counters, self.config, self.context
        began, done_before = time.monotonic(), counters.batch
        order = batches(
            len(self.parts.data.train), config.data.batch_size, config.seed, counters.epoch, config.data.last_batch
        )
        mine = [rows[share(len(rows), context.rank, context.world_size)] for rows in order]
        every, sizes = torch.cat(mine), [len(rows) for rows in mine]
        index = every.to(context.device).split(sizes)
        ids = list(self.feed.split.ids[every].split(sizes))[done_before:]
        view = self._view()
        sums = Sums(context, counters.sums)
        self.trainable.set_modes(self.phase)
        pictures = awaited(Part.PICTURES, self.feed.batches(mine[done_before:], view))
        extra = {
            name: awaited(Part.PICTURES, feed.batches(mine[done_before:], view))
            for name, feed in self.view_feeds.items()
        }
        following = self._view(1) if counters.epoch + 1 < self._epochs() else None
        stored = awaited(Part.ANSWERS, self.parts.teachers.stored(ids, view, self._heard(self._concerned()), following))
        steps = range(done_before, len(order))
        for number in steps if self.phase.stage else self.trace.steps(steps, last=following is None):
            views = {name: next(more) for name, more in extra.items()}
            rows = len(order[number])
            at = BatchPlace(number, len(order), rows, mine[number], index[number], config.engine.accumulate)
            with timed(Part.FIRST if self.terms is None else Part.STEPS):
                terms = self._step(at, next(pictures), views, next(stored))
            if not self.lost:
                sums.add(terms, len(mine[number]))
            counters.step += 1
            counters.batch += 1
            self._count_skipped(order)
            context.alive()
            self._tell_written()
            self._say(
                phase="training", stage=self.phase.name, epoch=counters.epoch, batch=counters.batch, batches=len(order)
            )
            if self.terms and not self.lost and counters.step % config.engine.log_every == 0:
                self._check_finite(sums, order)
                self._log_step(terms, len(mine[number]))
            self.asked = self.listener.hear(counters.step) or self.asked
            due = (self.asked or self._checkpoint_is_due()) and not self.lost
            if due and counters.batch < len(order) and at.ends_update:
                counters.sums = sums.by_worker()
                self._check_finite(sums, order)
                self._checkpoint()
                if self.asked:
                    self._answer()
        self._check_finite(sums, order)
        train_terms = sums.means()
        loss = train_terms.pop(TOTAL)
        seconds = time.monotonic() - began
        seen = sum(len(rows) for rows in order[done_before:])
        counters.epoch, counters.batch, counters.sums = counters.epoch + 1, 0, {}
        self.parts.teachers.flush()
        if self.phase.stage:
            self._finish_epoch_of_stage(train_terms, seen / seconds)
        else:
            self._finish_epoch(train_terms, loss, seen / seconds)

    def _step(self, at: BatchPlace, pictures: Tensor, views: dict[str, Tensor], stored: Stored) -> Terms:
        """One batch, of this worker's pictures uint8 (b, C, H, W). Returns the terms, and their weighted sum as
        `TOTAL`."""
        config, context, step = self.config, self.context, self.counters.step
        self.at, epoch = at, self.counters.epoch + at.number / at.batches
        self.counts = shares(at.size, context.world_size)
        concerned = self._concerned()
        if at.ends_update:
            self.dials.set("lr", self._lr(epoch))
        for label in concerned:
            self.dials.set(f"weight of {label}", self._weight(label, epoch))
        self._move_options(concerned, epoch)
        reseed(stream(config.seed, "dropout", step, context.rank), context.device)
        for generator in self.generators:
            generator.manual_seed(stream(config.seed, "step", step))
        inputs = Inputs(pictures, views, at.index)
        if mix := self.parts.data.mix:
            ids = self.parts.data.train.ids[at.mine]
            partner, own = mix.labels(ids, self._view(), pictures.shape[-2:])
            inputs.partner = partner.to(context.device, non_blocking=True)
            inputs.share = own.to(context.device, self.parts.precision.dtype, non_blocking=True)
        inputs.known = self.parts.teachers.known(pictures, views, self._heard(concerned), stored)
        return self.recorder(inputs) if self.recorder else self._work(inputs)

    def _work(self, inputs: Inputs) -> Terms:
        """The part of a step that the device does. What it reads beside its inputs is the same at every step, or stands
        in `dials`: it may be recorded."""
        context, counts = self.context, self.counts
        batch = Batch(
            index=inputs.index,
            target=self.labels[inputs.index],
            epoch=self.counters.epoch,
            offset=sum(counts[: context.rank]),
            size=self.at.size,
            partner=inputs.partner,
            share=inputs.share,
        )
        step = Step(
            number=self.counters.step,
            epoch=self.counters.epoch,
            generator=self.generators[0],
            device_generator=self.generators[-1],
            rank=context.rank,
            world_size=context.world_size,
            _gather=lambda x, differentiable: context.gather(x, counts, differentiable),
        )
        update = self.at.ends_update
        concerned = self._concerned()
        in_parts = self.wrapped is not self.objective
        statistics = self._statistics()
        if self.sharded:
            self.parts.student.model.set_requires_gradient_sync(update)
        with self.wrapped.no_sync() if in_parts and not update else nullcontext():
            teachers = self.parts.teachers(inputs.pictures, inputs.views, self._heard(concerned), inputs.known)
            seen = {name: view for name, view in inputs.views.items() if name in self.seen}
            x, *more = (self.parts.normalize(p, self.parts.precision.dtype) for p in (inputs.pictures, *seen.values()))
            terms = self.wrapped(x, dict(zip(seen, more)), teachers, batch, step)
            self._check_terms(list(terms), concerned)
            # Means over unequal parts: a part counts by its rows, so that the workers' average is the global mean.
            part = len(batch.index) * context.world_size / batch.size / self.at.batches_of_update
            self.lost = self._lost(terms)
            self.spoiled = self.spoiled or bool(self.lost)
            total = self._total(terms)
            if terms and not self.lost:
                (total * part).backward()
        for buffer, before in statistics if self.lost else ():
            buffer.copy_(before)
        for label, distiller in self.objective.by_label():
            if label in concerned and not self.lost:
                with naming(label, distiller, self.phase, step):
                    distiller.after_backward(batch_for(label, distiller, batch), step)
        if update and terms:
            self._update()
        return {name: term.detach() for name, term in {TOTAL: total, **terms}.items()}

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """The student's buffers and what they hold, where a batch may have to be left out."""
        skips = self.config.engine.nonfinite == "skip"
        return [(buffer, buffer.clone()) for buffer in self.parts.student.model.buffers()] if skips else []

    def _lost(self, terms: dict[str, Tensor]) -> list[str]:
        """Where a batch may be left out: its terms that are no finite numbers for some worker."""
        if self.config.engine.nonfinite == "stop" or not terms:
            return []
        flags = self.context.sum((~torch.stack([term.detach() for term in terms.values()]).isfinite()).int())
        return [name for name, flag in zip(terms, flags.tolist()) if flag]

    def _count_skipped(self, order: list[Tensor]) -> None:
        """Of the step that is just done. Raises RunFailed when too many were left out in a row."""
        counters = self.counters
        counters.skipped_in_row = counters.skipped_in_row + 1 if self.lost else 0
        if not self.lost:
            return
        counters.skipped += 1
        samples = self.parts.data.train.ids[order[counters.batch - 1]].tolist()
        if counters.skipped_in_row >= min(LOST_IN_A_ROW, len(order)):
            raise not_finite(
                self.lost, self.terms, counters.epoch + 1, counters.step - 1, samples, counters.skipped_in_row
            )
        self._row({"kind": "skipped", "epoch": counters.epoch, "terms": self.lost, "samples": samples})

    def _concerned(self) -> list[str]:
        return [label for label, _ in self.objective.by_label() if self.phase.concerns(label)]

    def _view(self, later: int = 0) -> int:
        """That of the pictures of this epoch, or of one that comes so many epochs later."""
        return (self.counters.epoch + later) % self.config.views

    def _heard(self, concerned: list[str]) -> list[str]:
        """The losses that may need their teacher: not those that add nothing to the main loop."""
        if self.phase.stage or self.terms is None:
            return concerned
        speaking = {name.split("/")[0] for name in self.terms}
        return [label for label in concerned if label in speaking]

    def _check_terms(self, names: list[str], concerned: list[str]) -> None:
        if self.terms is None and not names and self.phase.stage is None:
            raise ConfigError(
                f"losses: {', '.join(concerned)} adds nothing to the main loop, only to a stage before it, so the "
                "student would learn nothing there: add `ce: {}`"
            )
        if self.terms not in (None, names):
            changed = sorted(set(names) ^ set(self.terms)) or names
            raise PluginError(
                f"the terms {', '.join(changed)} are not there at every step (first {self.terms}, now {names}): a loss "
                "returns terms of the same names throughout a stage or the main loop, 0 where there is nothing to add"
            )
        self.terms = names

    def _check_finite(self, sums: Sums, order: list[Tensor]) -> None:
        """Of all steps since it was last called; a loss is lost for some steps before it is found out."""
        counters, found = self.counters, sums.first_lost()
        if found:
            ago, names = found
            lost = [name for name in self.terms if name in names] or ["their weighted sum"]
            samples = self.parts.data.train.ids[order[counters.batch - 1 - ago]].tolist()
            raise not_finite(lost, self.terms, counters.epoch + 1, counters.step - 1 - ago, samples)

    def _update(self) -> None:
        if self.config.engine.nonfinite == "skip":
            if not self.spoiled and not finite_gradients(self.parameters, self.context):
                self.lost = ["the gradient"]
            spoiled, self.spoiled = self.spoiled or bool(self.lost), False
            if spoiled:
                self.optimizer.zero_grad(set_to_none=True)
                self.ranges.forget()
                return
        for group in self.optimizer.param_groups:
            group["lr"] = self.dials["lr"]
        if self.config.engine.clip_norm:
            clip_norm(self.parameters, self.config.engine.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ranges.follow(self.context)
        if self.ema:
            self.ema.update()

    def _total(self, terms: Terms) -> Tensor:
        """The weighted sum that is trained."""
        zero = torch.zeros((), device=self.context.device)
        return sum((self.dials[f"weight of {name.split('/')[0]}"] * term for name, term in terms.items()), zero)

    def _lr(self, at: float) -> float:
        base, stage = self.config.optimizer.lr, self.phase.stage
        return (stage.lr or base) if stage else base * lr_factor(self.config.schedule, at)

    def _weight(self, label: str, at: float) -> float:
        """Of a loss's terms in the sum; in a stage there is one loss only, and it counts as it is."""
        if self.phase.stage:
            return 1.0
        return loss_weight(self.config.losses[label].weight, at, self.config.schedule.epochs)

    def _move_options(self, labels: list[str], at: float) -> None:
        """Set the options that the config lets move to their values at epoch `at` of the main loop."""
        for label, distiller in self.objective.by_label():
            moving = self.config.losses[label].schedule
            if moving and label in labels and self.phase.stage is None:
                given = self.options[label]
                now = {k: option_value(getattr(given, k), m, at, self._epochs()) for k, m in moving.items()}
                distiller.options = given.model_copy(update=now)

    # -- after an epoch ----------------------------------------------------------------------------------------------

    def _finish_epoch_of_stage(self, terms: dict[str, float], rate: float) -> None:
        counters, stage = self.counters, self.phase.stage
        last = counters.epoch == stage.epochs
        if last and stage.finish:
            stage.finish()
        self._row(
            {
                "kind": "stage",
                "stage": self.phase.name,
                "epoch": counters.epoch,
                "epochs": stage.epochs,
                "lr": self._lr(counters.epoch),
                "terms": terms,
                "pictures_per_second": rate,
                "workers": self.context.world_size,
                "seconds": time.monotonic() - self.started,
            }
        )
        if last or counters.epoch % self.config.checkpoint.every_epochs == 0:
            self._checkpoint()

    def _finish_epoch(self, terms: dict[str, float], loss: float, rate: float) -> None:
        counters = self.counters
        if self.config.engine.batch_norm == "local":  # one network is evaluated and exported: the first worker's
            for x in (*self.network.buffers(), *(self.ema.state.values() if self.ema else ())):
                self.context.broadcast(x)
        results = {name: self._evaluate(self._student, name, "evaluating") for name in self.splits}
        self._tell_written(wait=True)  # the last checkpoint takes the best student as of then
        judged = "validation" if "validation" in results else "test"
        top1 = results[judged]["top1"]
        if counters.best is None or top1 > counters.best["top1"]:
            counters.best = {
                "epoch": counters.epoch,
                "split": judged,
                **{name: r["top1"] for name, r in results.items()},
                "top1": top1,
            }
            state = self.student_state()
            if self.context.is_first:
                self.log.guard()
                checkpoint.replace_safetensors(state, self.folder / checkpoint.BEST)
        self._row(
            {
                "kind": "epoch",
                "epoch": counters.epoch,
                "lr": self.dials.values["lr"],
                "loss": loss,
                "terms": terms,
                **results,
                "best": counters.best,
                **({"skipped": counters.skipped} if self.config.engine.nonfinite == "skip" else {}),
                "pictures_per_second": rate,
                "workers": self.context.world_size,
                "seconds": time.monotonic() - self.started,
            }
        )
        last = counters.epoch == self.config.schedule.epochs
        if last or (counters.epoch % self.config.checkpoint.every_epochs == 0 and not self.lost):
            self._checkpoint()

    def _student(self, pictures: Tensor) -> Tensor:
        precision = self.parts.precision
        x = self.parts.normalize(pictures, precision.dtype)
        if self.ema:
            return precision.run(lambda x: functional_call(self.network, self.ema.state, (x,), tie_weights=False), x)
        return precision.run(self.network, x)

    @timed(Part.EVALUATION)
    def _evaluate(self, network, split: str, phase: str) -> dict[str, float]:
        data = self.parts.data
        self._say(phase=phase)
        self.objective.eval()
        self.network.eval()
        split = getattr(data, split)
        return evaluate(
            network, split, Feed(split, data.evaluate, self.config.data.threads, self.context.device), self.context
        )

    def student_state(self) -> dict[str, Tensor]:
        """What is exported: the averaged weights where there are any. Every worker must call it."""
        return self.ema.state if self.ema else whole(self.network.state_dict())

    @timed(Part.CHECKPOINTS)
    def _checkpoint(self) -> None:
        """Copy all that the rest of the run depends on. The first worker's writer has it on disk some steps later;
        nobody waits for that but who calls `_tell_written`."""
        self._tell_written(wait=True)
        self.parts.teachers.flush()  # what is answered before a checkpoint is not asked again after it
        self.counters.seconds = time.monotonic() - self.started
        check_replicas(self.objective, self.context)
        student, optimizer = whole(self.parts.student.model.state_dict()), {}
        if self.optimizer:
            optimizer = whole_optimizer(self.optimizer)
        if self.context.is_first:
            self.log.guard()
            tensors = {
                "student": student,
                "distillers": self.objective.state_of_distillers(),
            }
            if self.ema:
                tensors["ema"] = self.ema.state
            self.writer.begin(self.counters, tensors, optimizer)
        self.saved_at = self.counters.step
        self.context.alive()

    def _tell_written(self, wait: bool = False) -> None:
        """Write down that the last checkpoint is on disk, once it is. Raises RunFailed where it could not be
        written. On the other workers there is nothing to tell, nor to wait for: their next step waits for the first
        one's."""
        if saved := self.writer.written(wait):
            self._row({"kind": "checkpoint", "step": saved.step, "path": saved.path.name})

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return every is not None and self.counters.step // every > self.saved_at // every

    # -- telling -----------------------------------------------------------------------------------------------------

    def _row(self, row: dict) -> None:
        if self.context.is_first:
            self.log.row({"step": self.counters.step, **row})

    def _log_step(self, terms: Terms, rows: int) -> None:
        sums = Sums(self.context, {})
        sums.add({name: term for name, term in terms.items() if name != TOTAL}, rows)
        of_stage = {"stage": self.phase.name} if self.phase.stage else {}
        self._row({"kind": "step", **of_stage, "epoch": self.counters.epoch, "terms": sums.means()})

    def _say(self, **now) -> None:
        if self.context.is_first:
            self.log.progress(epochs=self._epochs(), **now)


def _cache_of(teacher: Teacher) -> dict[str, str]:
    return {"cache": teacher.where} if isinstance(teacher, CachedTeacher) else {}
