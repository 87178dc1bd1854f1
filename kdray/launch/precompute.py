"""`kdray precompute`: the teachers' answers to all that the epochs of a config will show, computed once and stored."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config.schema import Config
from ..data.build import Data
from ..engine.build import Parts, build
from ..engine.phases import phases
from ..errors import ConfigError, KdrayError, MismatchError, RunFailed, Stopped
from ..run.asking import STOP, asked
from ..run.console import duration
from ..teacher.check import check_complete, differing_spots, refuse_unserved
from ..teacher.live import LiveTeacher
from ..teacher.plan import Plan, views_met
from ..teacher.setup import Place, identities, place_of, stores
from .answering import Answerer, Errand
from .code import Code
from .experiment import Experiment, device_here, files_of
from .nodes import check_nodes
from .pool import Pool
from .session import RaySession, fixed, resources, share_out
from .worker import tail


@dataclass
class Work:
    """One cache to fill."""

    teacher: str
    kind: str
    plan: Plan
    live: LiveTeacher
    samples: int
    views: int
    live_forwards: int
    """How often a run with the live teacher asks it."""
    threads: int
    everything: bool
    seconds: float = 0.0
    computed: int = 0

    def describe(self) -> str:
        plan, store = self.plan, self.plan.store
        pictures, n = store.pictures, plan.needed
        there = f", {n - plan.missing:,} of them there already" if plan.missing < n else ""
        of = f"{self.samples:,} samples × {self.views} views"
        if self.everything:
            of = f"{self.samples:,} samples × all their {pictures.variants} pictures"
        elif pictures.variants:
            of += f", those that the epochs show of the {pictures.variants} pictures of each"
        top = f", the {store.codec.top_k} largest logits" if store.codec.top_k else ""
        size = plan.bytes_a_picture
        lines = [
            f"{self.teacher}{f', view {self.kind}' if self.kind else ''} -> {store.cache.where}",
            f"  answers   {n:,}{there}: {of}",
            f"  stored    {', '.join(store.outputs)} as {store.codec.dtype}{top}: {size} bytes each, "
            f"{size * n / 1e6:,.1f} MB",
            f"  forwards  {plan.missing:,} to compute; a run with the live teacher makes {self.live_forwards:,}: "
            f"{self._break_even()}",
        ]
        return "\n".join(lines)

    def _break_even(self) -> str:
        runs, missing = self.live_forwards, self.plan.missing
        if not missing:
            return "nothing to pay"
        if missing == runs:
            return "the first run saves none of them, every further one all"
        if missing < runs:
            return f"the first run saves {1 - missing / runs:.0%} of them, every further one all"
        return f"pays from run {missing // runs + 1} on"

    def verify(self, spots: int) -> None:
        """Raises MismatchError where answers are missing, or the teacher gives other ones now."""
        store = self.plan.store
        check_complete(self.plan)
        keys = np.concatenate(self.plan.items)
        if other := differing_spots(store, self.live, keys, spots, self.threads):
            raise MismatchError(f"{store.cache.where}: {other}")

    def summary(self) -> dict:
        store = self.plan.store
        return {
            "teacher": self.teacher,
            "view": self.kind,
            "path": store.cache.where,
            "outputs": list(store.outputs),
            **store.codec.describe(),
            "needed": self.plan.needed,
            "missing_before": self.plan.missing,
            "computed": self.computed,
            "bytes_a_picture": self.plan.bytes_a_picture,
            "bytes": self.plan.bytes_a_picture * self.plan.needed,
            "live_forwards": self.live_forwards,
            "seconds": round(self.seconds, 3),
        }


class Precompute(Experiment):
    def run(self, config: Config, everything: bool = False, dry_run: bool = False) -> list[dict]:
        """What was asked for and done, by cache. everything: all pictures of a sample, not only those that the epochs
        show.

        Raises ConfigError where there is no teacher, or a loss that no cache can serve; MismatchError where the place
        holds a cache of something else.
        """
        with contextlib.ExitStack() as self.stack, self._resumable():
            parts = self._parts(config)
            checkpoints, untrained = self._weights(config, parts.data.fingerprint())
            for name in untrained:
                if dry_run:
                    self.console.say(
                        f"{name} is not trained yet: {config.all_teachers[name].train} would train it first"
                    )
                    continue
                run = self._trained(config, name, parts.data.fingerprint())
                checkpoints[name] = str(run.path / "student.safetensors")
            parts = self._build(config, checkpoints, parts.data)
            places, works = self._plan(config, parts, everything, untrained if dry_run else ())
            for work in works:
                self.console.say(work.describe())
            if not any(work.plan.missing for work in works):
                self.console.say("everything is there already")
            elif not dry_run:
                self._compute(Errand(config, self.project.data, checkpoints, places), works, parts.data)
        return [work.summary() for work in works]

    @contextlib.contextmanager
    def _resumable(self):
        try:
            yield
        except KeyboardInterrupt:
            self.console.say("interrupted: what is stored stays; the same command goes on with the rest")
            raise

    def trained(self, config: Config) -> Parts:
        """With the weights of all teachers. Raises MismatchError where one is not trained yet."""
        parts = self._parts(config)
        checkpoints, untrained = self._weights(config, parts.data.fingerprint())
        if untrained:
            raise MismatchError(f"{', '.join(untrained)} is not trained yet, so no answers of it are stored")
        return self._build(config, checkpoints, parts.data)

    def places(self, config: Config, parts: Parts) -> dict[str, Place]:
        """Of the caches that `run` would fill, by teacher."""
        found = {}
        for name in self._asked(config):
            section = config.all_teachers[name]
            wanted = identities(section, parts.teachers.by_name[name], parts.needs[name], parts.data, parts.views)
            found[name] = place_of(section, config.data.name, wanted[""], self.project.cache)
        return found

    def works(self, config: Config, parts: Parts) -> list[Work]:
        """What `run` would look at."""
        return self._plan(config, parts, everything=False)[1]

    def _parts(self, config: Config) -> Parts:
        """All that can be wrong is found before a teacher is trained."""
        if not config.all_teachers:
            raise ConfigError("this config has no teacher whose answers could be stored")
        self.registry.host.ask("kdray_configure", config=config.model_dump(mode="json"))
        parts = self._build(config, {n: t.checkpoint for n, t in config.all_teachers.items() if t.checkpoint})
        for name in self._asked(config):
            refuse_unserved(name, config, parts)
        return parts

    def _build(self, config: Config, checkpoints: dict[str, str], data: Data | None = None) -> Parts:
        return build(config, self.registry, self.project.data, checkpoints, torch.device("cpu"), data=data)

    @property
    def session(self) -> RaySession:
        """Started when it is needed: a cache that is there costs nothing to ask for again."""
        if not hasattr(self, "_ray"):
            self._ray = self.stack.enter_context(RaySession(self.address or self.project.ray_address))
        return self._ray

    def _asked(self, config: Config) -> list[str]:
        """The teachers with a cache; all, where the config speaks of none."""
        teachers = config.all_teachers
        return [name for name, teacher in teachers.items() if teacher.cache] or list(teachers)

    def _plan(
        self, config: Config, parts: Parts, everything: bool, untrained: Collection[str] = ()
    ) -> tuple[dict[str, Place], list[Work]]:
        """untrained: teachers whose weights are not known, and so neither the name of their cache."""
        places, works = self.places(config, parts), []
        views = views_met(config, phases(parts.objective.by_label()))
        for name, place in places.items():
            section, needs, data = config.all_teachers[name], parts.needs[name], parts.data
            if name in untrained and not (section.cache and section.cache.path):
                place = replace(place, where=f"{place.where.rpartition('-')[0]}-…")
            wanted = identities(section, parts.teachers.by_name[name], needs, data, parts.views)
            for kind, store in stores(place, section, wanted, needs, data, parts.views, parts.shapes[name]).items():
                if everything and not store.pictures.variants:
                    raise ConfigError(
                        "--all: data.augment makes too many pictures of a sample to store them all; what the epochs "
                        "show can be stored"
                    )
                if name not in untrained:
                    store.cache.compare(store.identity)
                store.cache.storage.sweep()
                plan = Plan.make(store, data, views, everything)
                live = parts.teachers.by_name[name]
                works.append(
                    Work(
                        name,
                        kind,
                        plan,
                        live,
                        len(data.train),
                        len(views),
                        len(data.train) * config.schedule.epochs,
                        config.data.threads,
                        everything,
                    )
                )
        return places, works

    def _compute(self, errand: Errand, works: list[Work], data: Data) -> None:
        config = errand.config
        if config.scale.num_workers == 0:
            answerer = Answerer(errand, self.registry, device_here(config), data)
            try:
                self._fill(works, lambda what, *given: getattr(answerer, what)(*given), _in_turn(answerer), 1)
            except KdrayError:
                raise
            except Exception as error:
                lines = tail("".join(traceback.format_exception(error)))
                raise RunFailed(f"the work failed:\n{lines}") from error
            return
        scale = fixed(config.scale, self.session.nodes())
        cpus, use_gpu = share_out(scale, self.session.nodes())
        errand = Errand(
            *(errand.config, errand.data_root, errand.checkpoints, errand.places),
            Code.of(self.registry),
            threads=max(1, int(cpus)),
        )
        workers = scale.num_workers
        if self.session.joined:
            check_nodes(self.session.ray, self.session.addresses(), None, files_of(config, self.project))
        self.session.wait_for_room(workers * [resources(cpus, use_gpu)], self.console.say)
        with Pool(errand, workers, cpus, use_gpu, config.scale.max_failures) as pool:
            self._fill(works, pool.ask, pool.compute, workers)

    def _fill(self, works: list[Work], ask, compute, workers: int) -> None:
        for name in dict.fromkeys(work.teacher for work in works if work.plan.missing):
            mine = [work for work in works if work.teacher == name and work.plan.missing]
            rate = ask("rate", name) * workers
            total = sum(work.plan.missing for work in mine)
            self.console.say(
                f"{name}: about {duration(total / rate)} at {rate:,.0f} a second "
                f"({workers} worker{'s' if workers > 1 else ''}, measured)"
            )
            accuracy = None
            for work in mine:
                cache = work.plan.store.cache
                if cache.manifest() is None:
                    accuracy = accuracy or ask("accuracy", name)
                    cache.create(work.plan.store.identity, accuracy)
                began = time.monotonic()
                with self.console.counting(
                    cache.where, work.plan.needed, work.plan.needed - work.plan.missing
                ) as count:

                    def done(task, was_new, work=work, count=count):
                        if asked(self.under_way) == STOP:
                            raise Stopped("stopped while the teachers' answers were computed")
                        work.computed += len(task[2]) if was_new else 0
                        count(len(task[2]))

                    tasks = [(name, work.kind, keys) for keys in work.plan.lacking if len(keys)]
                    # Two commands that fill one cache would do the same at the same time, were they of one order.
                    random.Random(time.time_ns()).shuffle(tasks)
                    compute(tasks, done)
                work.seconds = time.monotonic() - began


def _in_turn(answerer: Answerer):
    """While a thread writes the answers of one item, those of the next are computed."""

    def compute(tasks, on_done):
        def finish(task, written):
            if written:
                written.result()
            on_done(task, written is not None)

        with ThreadPoolExecutor(1, thread_name_prefix="kdray-write") as writer:
            last = None
            for task in tasks:
                write = answerer.answer(*task)
                this = task, writer.submit(write) if write else None
                if last:
                    finish(*last)
                last = this
            if last:
                finish(*last)

    return compute
