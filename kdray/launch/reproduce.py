"""`kdray reproduce`: the cells of a published table, each an ordinary run, spread over a cluster by Ray Tune.

Teachers are trained first, each once; what they answer is stored once for all cells that a cache can serve. What is
left to do is seen in the run folders: the same command goes on after an interruption, and with more of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from ..config.dump import to_yaml
from ..config.load import load_config
from ..config.schema import CacheConfig, Config
from ..config.tune import TuneConfig
from ..data.build import Data, load_data
from ..data.feed import Feed
from ..engine.build import Parts, build
from ..engine.phases import phases
from ..errors import KdrayError, MismatchError
from ..reproduce.cells import Cell, Job, same_work
from ..reproduce.result import markdown, summarise
from ..run.folder import RunFolder, write_json
from .code import Code
from .experiment import Experiment
from .nodes import refuse_vanishing
from .precompute import Precompute
from .session import RaySession
from .tune.answers import too_large
from .tune.share import Share, share_out_trials

LITTLE = 10**11
"""Multiply-accumulates that take less time in this process than it takes to start others."""


@dataclass(frozen=True)
class Work:
    """Of one run. macs: multiply-accumulates, were its teacher live. outputs: what a cache would have to hold for it;
    None where no cache can serve."""

    epochs: int
    pictures: int
    macs: int
    outputs: tuple | None


@dataclass
class Plan:
    """How much work a job is. left: the runs that are not finished; teachers: by run, those to be trained; failed: by
    run, why it cannot be built."""

    job: Job
    left: dict[str, Work] = field(default_factory=dict)
    teachers: dict[str, tuple[Config, Work]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict:
        job, every = self.job, [*self.left.values(), *(work for _, work in self.teachers.values())]
        return {
            "name": job.name,
            "table": job.table.title,
            "pairs": list(dict.fromkeys(cell.pair for cell in job.cells)),
            "methods": list(dict.fromkeys(cell.method for cell in job.cells)),
            "seeds": sorted({cell.seed for cell in job.cells}),
            "runs": len(job.runs),
            "finished": len(job.runs) - len(self.left) - len(self.failed),
            "left": len(self.left),
            "teachers": len(self.teachers),
            **{key: sum(getattr(work, key) for work in every) for key in ("epochs", "pictures", "macs")},
            "failed": self.failed,
        }


class Reproduce(Experiment):
    # -- before the runs ---------------------------------------------------------------------------------------------

    def plan(self, job: Job) -> Plan:
        """Nothing is done but building each network once. Raises MismatchError where a run has begun with other
        values."""
        plan, works = Plan(job), {}
        kinds = len({(cell.pair, cell.method) for cell in job.cells})
        self.console.say(f"building each of {kinds} kinds of runs once, to see how much work it is")
        for name, cell in job.runs.items():
            run, key = self._run(name, cell), (cell.pair, cell.method)
            self._check_same(run, cell)
            if run.finished:
                continue
            if key not in works:
                self._data(cell.config)  # what is wrong with it is wrong for all
                works[key] = self._try_work(cell.config)
            if isinstance(works[key], str):
                plan.failed[name] = works[key]
            else:
                plan.left[name] = works[key]
        for name in plan.left:
            if (cell := job.runs[name]).config.teacher:
                recipe, run = self._teacher_run(job, cell)
                if not run.finished and run.name not in plan.teachers:
                    plan.teachers[run.name] = recipe, self._work(recipe)
        return plan

    def _run(self, name: str, cell: Cell) -> RunFolder:
        return RunFolder(self._path(cell.config, name))

    def _check_same(self, run: RunFolder, cell: Cell) -> None:
        if (run.path / "status.json").exists():
            begun = load_config(run.config_file, registry=self.registry).config
            if not same_work(begun, cell.config):
                raise MismatchError(
                    f"{run.path} has begun with other values than are given now: give the same overrides, or start "
                    "another table with --name"
                )

    def _teacher_run(self, job: Job, cell: Cell) -> tuple[Config, RunFolder]:
        """The recipe of a cell's teacher, and its run, there or not."""
        pictures = self._data(cell.config).fingerprint()
        return self._planned(job.recipes[cell.config.teacher.train], pictures, cell.config)

    def _data(self, config: Config) -> Data:
        """Loaded once for all cells that have the same."""
        key = (config.data.model_dump_json(), config.seed)
        if getattr(self, "_loaded", (None,))[0] != key:
            self._loaded = key, load_data(config.data, config.seed, self.registry, self.project.data)
        return self._loaded[1]

    def _parts(self, config: Config, checkpoints: dict[str, str] | None = None) -> Parts:
        cpu, data = torch.device("cpu"), self._data(config)
        return build(config, self.registry, self.project.data, checkpoints or {}, cpu, data=data)

    def _try_work(self, config: Config) -> Work | str:
        try:
            return self._work(config)
        except KdrayError as error:
            return str(error)

    def _work(self, config: Config) -> Work:
        parts = self._parts(config)
        picture = _picture(parts)
        stages = sum(phase.stage.epochs for phase in phases(parts.objective.by_label()) if phase.stage)
        epochs = config.schedule.epochs + stages
        # Backward takes twice as much as forward; a teacher has no backward.
        each = 3 * _macs(parts.student, picture) + sum(_macs(network, picture) for network in parts.teachers.networks())
        needs = parts.needs.get("teacher")
        outputs = None if needs is None or needs.beyond else tuple(sorted(needs.outputs.items()))
        return Work(epochs, epochs * len(parts.data.train), epochs * len(parts.data.train) * each, outputs)

    # -- the runs ----------------------------------------------------------------------------------------------------

    def start(self, plan: Plan, limits: TuneConfig) -> dict:
        """The whole job, and what came of it: see `kdray.reproduce.result`. limits: what a run is given, and how many
        there are at a time."""
        job, limits = plan.job, limits.model_copy(update={"trials": len(plan.left)})
        folder = self._path(job.cells[0].config, job.name)
        refuse_vanishing(folder)
        (run := RunFolder(folder)).refuse_alive()
        self._write(folder, job, plan.failed)
        with self._interruptible(folder), self._driven(run):
            if plan.left:
                with RaySession(self.address or self.project.ray_address) as self.session:
                    share = share_out_trials(limits, self.session.nodes())
                    self._check_nodes(job.runs[next(iter(plan.left))].config)
                    self._run_all(folder, {name: recipe for name, (recipe, _) in plan.teachers.items()}, share)
                    self._run_all(folder, self._with_teachers(folder, plan, share), share)
            return self._finish(folder, job)

    def _write(self, folder: Path, job: Job, failed: dict[str, str]) -> None:
        """The table, the teachers' recipes where they are its own, and what cannot be built."""
        from .side_by_side import failure, tell

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "command.txt").write_text(self.command + "\n")
        (folder / "table.yaml").write_text(yaml.safe_dump(job.table.model_dump(), sort_keys=False))
        for name in job.runs:
            tell(failure(folder, name), failed.get(name))
        for file, recipe in job.recipes.items():
            if Path(file).is_relative_to(folder):
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).write_text(to_yaml(recipe))

    def _run_all(self, folder: Path, configs: dict[str, Config], share: Share) -> None:
        from .side_by_side import Todo, run_all

        if configs:
            code, threads = Code.of(self.registry), max(1, int(share.cpus))
            some = f"{len(configs)} run{'s' if len(configs) > 1 else ''}"
            self.console.say(f"{some}, {min(share.at_once, len(configs))} at a time")
            paths = {name: self._path(config, name) for name, config in configs.items()}
            run_all(Todo(configs, paths, folder, self.project, self.command, code, threads), share, self.console)

    def _with_teachers(self, folder: Path, plan: Plan, share: Share) -> dict[str, Config]:
        """By run, the configs of those whose teacher is trained, with a cache of its answers where one can serve."""
        from .side_by_side import failure, tell

        found, stored = {}, {}
        for name, work in plan.left.items():
            cell = plan.job.runs[name]
            found[name] = cell.config
            if not cell.config.teacher:
                continue
            _, teacher = self._teacher_run(plan.job, cell)
            if not teacher.finished:
                why = failure(folder, teacher.name).read_text()
                tell(failure(folder, name), f"its teacher failed: {why}")
                del found[name]
                continue
            key = (cell.config.teacher.train, cell.seed, work.outputs)
            cached = _cached(cell.config, work.outputs is not None)
            if work.outputs is not None and key not in stored:
                stored[key] = self._stored(cached, str(teacher.path / "student.safetensors"), share)
            found[name] = cached if stored.get(key) else _cached(cell.config, False)
        return found

    def _stored(self, config: Config, weights: str, share: Share) -> bool:
        """Store what the teacher of a cell answers. Whether that could be done; else the teacher is live."""
        precompute = Precompute(
            *(self.registry, self.project, self.console, self.command, self.address), under_way=self.under_way
        )
        parts = self._parts(_cached(config, False), {"teacher": weights})
        if reason := too_large(precompute, config, parts, self.project.cache):
            self.console.say(reason)
            return False
        missing = sum(work.plan.missing for work in precompute.works(config, parts))
        gpus = int(sum(node.get("GPU", 0.0) for node in self.session.nodes()))  # of which runs may share one
        is_little = missing * _macs(parts.teachers.networks()[0], _picture(parts)) < LITTLE
        workers = {"num_workers": 0 if is_little else gpus or share.at_once, "cpus_per_worker": None}
        try:
            precompute.run(config.model_copy(update={"scale": config.scale.model_copy(update=workers)}))
        except KdrayError as error:
            self.console.say(f"the teacher's answers are not stored, it is live: {error}")
            return False
        return True

    def _finish(self, folder: Path, job: Job) -> dict:
        """table.json and table.md, and what the former says."""
        from .side_by_side import failure

        rows, teachers = [], {}
        for cell in job.cells:
            name = f"{job.name}/{cell.folder}"
            summary, why = self._run(name, cell).summary, failure(folder, name)
            rows.append((cell.pair, cell.method, cell.seed, summary, why.read_text() if why.exists() else None))
            if summary and "teacher" in summary:
                teachers[cell.config.teacher.model] = summary["teacher"]["top1"]
        entries = summarise(job.table, rows, teachers)
        facts = {"source": job.table.source, "epoch": job.table.epoch, "overrides": list(job.overrides)}
        found = {"name": job.name, "path": str(folder), **facts, "cells": entries}
        write_json(folder / "table.json", found)
        (folder / "table.md").write_text(markdown(job.name, job.table, job.overrides, entries))
        return found


def _cached(config: Config, served: bool) -> Config:
    cache = (config.teacher.cache or CacheConfig()).model_copy(update={"fallback": "live", "fill": False})
    teacher = config.teacher.model_copy(update={"cache": cache if served else None})
    return config.model_copy(update={"teacher": teacher})


def _picture(parts: Parts) -> torch.Tensor:
    """The first training picture, normalised: (1, C, H, W)."""
    feed = Feed(parts.data.train, parts.data.augment, 1, parts.device)
    return parts.normalize(next(iter(feed.batches([torch.tensor([0])], view=0))), parts.precision.dtype)


def _macs(network: torch.nn.Module, pictures: torch.Tensor) -> int:
    """Multiply-accumulates of one normalised picture (1, C, H, W)."""
    training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(pictures)
    network.train(training)
    return counter.get_total_flops() // 2
