"""The training loop: the same in this process, in a Ray worker and in a test.

build the parts · resume from the newest checkpoint · measure the teacher
for each epoch
    for each global batch: my share of it
        pictures of view (epoch mod views)  ->  teacher, student  ->  terms
        weighted sum  ->  backward  ->  after_backward of each loss  ->  optimizer at every `accumulate` batches
    evaluate · keep the best · checkpoint
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from ..config.load import digest
from ..config.schema import Config
from ..data.build import Data
from ..data.feed import Feed
from ..data.views import batches, share
from ..distiller import Batch, Outputs, Step
from ..errors import ConfigError, MismatchError, PluginError, RunFailed
from ..registry import Registry
from . import checkpoint
from .allocator import keep_freed_memory
from .batchnorm import synchronise
from .build import Parts, build
from .checkpoint import Counters
from .context import Context, reseed, stream
from .ema import EMA
from .evaluate import evaluate
from .schedule import loss_weight, lr_factor
from .sums import Sums


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a run. All paths are absolute and seen by every worker."""

    config: Config
    folder: Path
    data_root: Path
    teacher_checkpoint: str | None = None
    data: str = ""
    """Fingerprint of the data, where it is known: another node may hold others under the same path."""


class Log(Protocol):
    """Where the first worker tells what happens."""

    def row(self, row: dict) -> None: ...

    def rewind(self, step: int) -> None: ...

    def guard(self) -> None: ...

    def progress(self, **now) -> None: ...


def train(job: Job, registry: Registry, context: Context, log: Log) -> None:
    """Train to the end of the schedule. Every worker calls it; `log` is used by the first alone."""
    parts = build(job.config, registry, job.data_root, job.teacher_checkpoint, context.device)
    if job.data:
        check_same_data(parts.data, job.data)
    Training(job, parts, registry, context, log).run()


class Training:
    def __init__(self, job: Job, parts: Parts, registry: Registry, context: Context, log: Log):
        self.config, self.folder, self.parts, self.context, self.log = job.config, job.folder, parts, context, log
        config, device = job.config, context.device
        if device.type == "cpu":
            keep_freed_memory()
        check_last_batch(config, len(parts.data.train), context.world_size)
        objective = parts.objective
        if context.world_size > 1 and config.engine.batch_norm == "global":
            synchronise(objective, device)
        self.objective = objective
        self.network = parts.student.model
        self.ema = EMA(self.network, config.engine.ema) if config.engine.ema else None
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        spec = registry.get("optimizers", config.optimizer.name)
        options = spec.Options.model_validate({"lr": config.optimizer.lr, **config.optimizer.options})
        self.optimizer = spec.build(self.parameters, options)
        self.labels = parts.data.train.labels.to(device)
        self.feed = Feed(parts.data.train, parts.data.augment, config.data.threads, device)
        self.counters = Counters(digest=digest(config))
        self._resume()
        self.wrapped = self._distribute()

    # -- set-up ------------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        if found:
            if self.context.is_first:
                checkpoint.restore_best(found[-1], self.folder)
            self.counters, tensors, optimizer = checkpoint.load(found[-1], self.counters.digest)
            self.network.load_state_dict(tensors["student"])
            self.objective.load_state_of_distillers(tensors.get("distillers", {}))
            self.optimizer.load_state_dict(optimizer)
            if self.ema:
                self.ema.load(tensors["ema"])
        if self.context.is_first:
            self.log.rewind(self.counters.step if found else -1)
        self.saved_at = self.counters.step

    def _distribute(self) -> nn.Module:
        if self.context.world_size == 1:
            return self.objective
        return DistributedDataParallel(
            self.objective,
            broadcast_buffers=False,  # banks and statistics are kept equal by gathering
            gradient_as_bucket_view=True,
            find_unused_parameters=self._some_parameter_is_unused(),
        )

    def _some_parameter_is_unused(self) -> bool:
        """Whether the losses leave the classifier without gradient, as when only embeddings are compared."""
        return not any("logits" in d.requires.student for d in self.objective.distillers)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.started = time.monotonic() - self.counters.seconds
        if self.counters.step == 0 and self.counters.teacher is None:
            self._measure_teacher()
        epochs = self.config.schedule.epochs
        while self.counters.epoch < epochs:
            self._epoch()
        if self.context.is_first:
            self.log.guard()
            checkpoint.replace_safetensors(self.student_state(), self.folder / "student.safetensors")
        self.context.barrier()

    def _measure_teacher(self) -> None:
        teacher = self.parts.teacher
        if teacher is None:
            return
        result = self._evaluate(lambda pictures: teacher(pictures).logits, "test", "teacher")
        least = self.config.teacher.min_accuracy
        if least is not None and result["top1"] < least:
            raise ConfigError(
                f"the teacher's accuracy on the test set is {result['top1']:.2%}, below teacher.min_accuracy "
                f"({least:.2%}): a wrong checkpoint, "
                "a wrong normalisation (teacher.normalize), or other data than it was trained on"
            )
        self.counters.teacher = result
        parameters = sum(p.numel() for p in teacher.parameters())
        self._row({"kind": "teacher", **result, "parameters": parameters})

    def _epoch(self) -> None:
        counters, config, context = self.counters, self.config, self.context
        began, done_before = time.monotonic(), counters.batch
        order = batches(
            len(self.parts.data.train), config.data.batch_size, config.seed, counters.epoch, config.data.last_batch
        )
        mine = [rows[share(len(rows), context.rank, context.world_size)] for rows in order]
        view = counters.epoch % (config.data.views or config.schedule.epochs)
        sums = Sums(context, counters.sums)
        self.objective.train()
        pictures = self.feed.batches(mine[done_before:], view)
        for number in range(done_before, len(order)):
            terms = self._step(order[number], mine[number], next(pictures), number, len(order))
            sums.add(terms, len(mine[number]))
            counters.step += 1
            counters.batch += 1
            self._say(phase="training", epoch=counters.epoch, batch=counters.batch, batches=len(order))
            if counters.step % config.engine.log_every == 0:
                self._log_step(terms, len(mine[number]))
            if self._checkpoint_is_due() and counters.batch < len(order) and self._at_update(number, len(order)):
                counters.sums = sums.shared()
                self._check_finite(counters.sums)
                self._checkpoint()
        train_terms = sums.means()
        seconds = time.monotonic() - began
        seen = sum(len(rows) for rows in order[done_before:])
        counters.epoch, counters.batch, counters.sums = counters.epoch + 1, 0, {}
        self._finish_epoch(train_terms, seen / seconds)

    def _step(self, rows: Tensor, mine: Tensor, pictures: Tensor, number: int, total: int) -> dict[str, Tensor]:
        config, context, step = self.config, self.context, self.counters.step
        at = self.counters.epoch + number / total
        counts = [len(rows[share(len(rows), r, context.world_size)]) for r in range(context.world_size)]
        index = mine.to(context.device, non_blocking=True)
        batch = Batch(
            index=index,
            target=self.labels[index],
            epoch=self.counters.epoch,
            offset=sum(counts[: context.rank]),
            size=len(rows),
        )
        this_step = Step(
            number=step,
            epoch=self.counters.epoch,
            generator=torch.Generator().manual_seed(stream(config.seed, "step", step)),
            rank=context.rank,
            world_size=context.world_size,
            _gather=lambda x, differentiable: context.gather(x, counts, differentiable),
        )
        reseed(stream(config.seed, "dropout", step, context.rank), context.device)
        update = self._at_update(number, total)
        quiet = nullcontext() if update or context.world_size == 1 else self.wrapped.no_sync()
        with quiet:
            teacher = self.parts.teacher(pictures) if self.parts.teacher else Outputs()
            terms = self.wrapped(self.parts.normalize(pictures, self.parts.precision.dtype), teacher, batch, this_step)
            loss = sum(self._weight(name, at) * term for name, term in terms.items())
            # Means over unequal parts: a part counts by its rows, so that the workers' average is the global mean.
            part = len(mine) * context.world_size / len(rows)
            (loss * (part / self._batches_of_update(number, total))).backward()
        for distiller in self.objective.distillers:
            distiller.after_backward(batch, this_step)
        if update:
            self._update(at)
        return terms

    def _update(self, at: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * lr_factor(self.config.schedule, at)
        if self.config.engine.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.config.engine.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()

    def _weight(self, term: str, at: float) -> float:
        return loss_weight(self.config.losses[term.split("/")[0]].weight, at, self.config.schedule.epochs)

    def _at_update(self, number: int, total: int) -> bool:
        return (number + 1) % self.config.engine.accumulate == 0 or number + 1 == total

    def _batches_of_update(self, number: int, total: int) -> int:
        """Batches that share the update of batch `number`: fewer at an epoch's end."""
        k = self.config.engine.accumulate
        return min(k, total - number // k * k)

    # -- after an epoch ----------------------------------------------------------------------------------------------

    def _finish_epoch(self, terms: dict[str, float], rate: float) -> None:
        counters, data = self.counters, self.parts.data
        self._check_finite(terms)
        if self.config.engine.batch_norm == "local":  # one network is evaluated and exported: the first worker's
            for x in (*self.network.buffers(), *(self.ema.state.values() if self.ema else ())):
                self.context.broadcast(x)
        results = {
            name: self._evaluate(self._student, name, "evaluating")
            for name in ("validation", "test")
            if getattr(data, name) is not None
        }
        judged = "validation" if "validation" in results else "test"
        top1 = results[judged]["top1"]
        if counters.best is None or top1 > counters.best["top1"]:
            counters.best = {
                "epoch": counters.epoch,
                "split": judged,
                **{name: r["top1"] for name, r in results.items()},
                "top1": top1,
            }
            if self.context.is_first:
                self.log.guard()
                checkpoint.replace_safetensors(self.student_state(), self.folder / checkpoint.BEST)
        lr = self.optimizer.param_groups[0]["lr"]
        self._row(
            {
                "kind": "epoch",
                "epoch": counters.epoch,
                "lr": lr,
                "loss": sum(self._weight(name, counters.epoch - 1) * value for name, value in terms.items()),
                "terms": terms,
                **results,
                "best": counters.best,
                "pictures_per_second": rate,
                "seconds": time.monotonic() - self.started,
            }
        )
        last = counters.epoch == self.config.schedule.epochs
        if last or counters.epoch % self.config.checkpoint.every_epochs == 0:
            self._checkpoint()

    def _check_finite(self, terms: dict[str, float]) -> None:
        """Raises RunFailed before a network that is lost replaces a good checkpoint."""
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        if bad:
            raise RunFailed(
                f"{', '.join(bad)} is not a finite number any more in epoch {self.counters.epoch}: lower optimizer.lr, "
                "set engine.clip_norm, or use engine.precision fp32. The last checkpoint is from before."
            )

    def _student(self, pictures: Tensor) -> Tensor:
        precision = self.parts.precision
        x = self.parts.normalize(pictures, precision.dtype)
        if self.ema:
            with torch.autocast(self.context.device.type, torch.bfloat16, enabled=precision.autocast):
                return functional_call(self.network, self.ema.state, (x,))
        return precision.run(self.parts.student, x).logits

    def _evaluate(self, network, split: str, phase: str) -> dict[str, float]:
        data = self.parts.data
        self._say(phase=phase)
        self.objective.eval()
        split = getattr(data, split)
        return evaluate(
            network, split, Feed(split, data.evaluate, self.config.data.threads, self.context.device), self.context
        )

    def student_state(self) -> dict[str, Tensor]:
        """What is exported: the averaged weights where there are any."""
        return self.ema.state if self.ema else self.network.state_dict()

    def _checkpoint(self) -> None:
        self.counters.seconds = time.monotonic() - self.started
        self._check_replicas()
        if self.context.is_first:
            self.log.guard()
            tensors = {"student": self.network.state_dict(), "distillers": self.objective.state_of_distillers()}
            if self.ema:
                tensors["ema"] = self.ema.state
            path = checkpoint.save(
                self.folder,
                self.counters,
                tensors,
                self.optimizer.state_dict(),
                self.config.checkpoint.keep,
            )
            self._row({"kind": "checkpoint", "path": path.name})
        self.saved_at = self.counters.step
        self.context.barrier()

    def _check_replicas(self) -> None:
        """Raises PluginError when a loss holds other buffers on another worker: it wrote what it had not gathered."""
        if self.context.world_size == 1:
            return
        for label, distiller in self.objective.by_label():
            for name, buffer in distiller.named_buffers():
                mine = _checksum(buffer).view(1)
                if len(self.context.gather(mine, [1] * self.context.world_size).unique()) > 1:
                    raise PluginError(
                        f"loss '{label}' ({type(distiller).__name__}): its buffer {name} differs between workers. "
                        f"Buffers must be "
                        "written from gathered values (step.gather) and from step.generator only."
                    )

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return every is not None and self.counters.step // every > self.saved_at // every

    # -- telling -----------------------------------------------------------------------------------------------------

    def _row(self, row: dict) -> None:
        if self.context.is_first:
            self.log.row({"step": self.counters.step, **row})

    def _log_step(self, terms: dict[str, Tensor], rows: int) -> None:
        sums = Sums(self.context, {})
        sums.add(terms, rows)
        self._row({"kind": "step", "epoch": self.counters.epoch, "terms": sums.means()})

    def _say(self, **now) -> None:
        if self.context.is_first:
            self.log.progress(epochs=self.config.schedule.epochs, **now)


def _checksum(x: Tensor) -> Tensor:
    """A number that follows from the bits of x and their places; taken in pieces, since a bank may be large."""
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for number, piece in enumerate(x.detach().flatten().contiguous().view(torch.uint8).split(1 << 22)):
        weight = torch.arange(1, len(piece) + 1, device=x.device) % 65521 + number
        total += (piece * weight).sum()
    return total


def check_same_data(data: Data, expected: str) -> None:
    """Raises MismatchError when these are not the pictures that the run began with."""
    if data.fingerprint() != expected:
        raise MismatchError(
            f"the data set {data.name} is not the one that this run began with (fingerprint {data.fingerprint()[:12]}, "
            f"then {expected[:12]}): give it the same files (data.path), or start a new run"
        )


def check_last_batch(config: Config, samples: int, workers: int) -> None:
    """Raises ConfigError when the rest of an epoch would leave a worker without a sample."""
    rest = samples % config.data.batch_size
    if config.data.last_batch == "keep" and 0 < rest < workers:
        raise ConfigError(
            f"{samples} training samples in batches of {config.data.batch_size} leave {rest} in an epoch's last batch, "
            f"fewer than the {workers} workers: use data.last_batch=drop, another data.batch_size, "
            f"or --num-workers {rest}"
        )
