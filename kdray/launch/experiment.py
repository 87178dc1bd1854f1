"""All the runs that one config stands for: its teacher where none is trained yet, the student alone, the distilled student.

Each step looks at what is there already, so that the same call starts, goes on after an interruption, and ends.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.load import digest, load_config, to_yaml
from ..config.project import Project
from ..config.schema import Config, LossConfig
from ..engine.build import Parts, build
from ..engine.context import Context
from ..engine.train import Job, train
from ..errors import ConfigError, KdrayError, MismatchError
from ..registry import Registry, check_fingerprint
from ..run.console import Console
from ..run.folder import RunFolder, read_json, write_json
from ..run.metrics import FileLog
from ..run.summary import summarise
from ..run.watch import Watch
from .ray_train import run_on_ray
from .session import RaySession, share_out
from .worker import Assignment


@dataclass
class Experiment:
    registry: Registry
    project: Project
    console: Console
    command: str
    address: str | None = None
    """The Ray cluster, for runs with workers; None starts one here."""

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def start(self, config: Config) -> RunFolder:
        """A new run of `config`, to its end."""
        with self._session(config):
            return self._start(config)

    def resume(self, run: RunFolder, **scale) -> RunFolder:
        """Go on with an interrupted run, to its end, with these settings of `scale` where they are not None. A finished run is left as it is."""
        overrides = [f"scale.{key}={value}" for key, value in scale.items() if value is not None]
        config = load_config(run.config_file, overrides, registry=self.registry).config
        if run.finished:
            self.console.say(f"{run.name} is finished; nothing is left to do.")
            return run
        if run.is_alive:
            raise ConfigError(f"{run.name} is running just now, as process {run.status['pid']} of this machine")
        check_same_plugins(run, self.registry, config)
        with self._session(config):
            return self._advance(run, config)

    def check(self, config: Config) -> Parts:
        """Build everything on this process's CPU, to find what is wrong before anything is started or written."""
        check_batch(config)
        checkpoint = config.teacher.checkpoint if config.teacher else None
        return build(config, self.registry, self.project.data, checkpoint, torch.device("cpu"))

    # -- one run -----------------------------------------------------------------------------------------------------

    def _start(self, config: Config, name: str | None = None) -> RunFolder:
        path = self._runs(config) / (name or config.run.name or config.name)
        if not path.exists():  # else `create` says so, at once
            parts = self.check(config)
            needed = _checkpoint_bytes(parts) * (config.checkpoint.keep + 1)
            del parts
        else:
            needed = 0
        run = RunFolder.create(
            path, config_text=to_yaml(config), command=self.command, plugins=self.registry.fingerprint(), needed_bytes=needed
        )
        return self._advance(run, config)

    def _advance(self, run: RunFolder, config: Config) -> RunFolder:
        try:
            teacher = self._teacher(run, config)
            alone = self._alone(config) if config.baseline else None
            self._train(run, config, teacher)
        except KeyboardInterrupt:
            run.set_status("interrupted")
            raise
        except KdrayError as error:
            run.set_status("failed", error=str(error))
            raise
        summarise(run, config, teacher_run=_run_of(teacher), alone=alone)
        run.set_status("finished")
        return run

    def _teacher(self, run: RunFolder, config: Config) -> str | None:
        """The file of the teacher's weights; trained first where the config says how. The run remembers which it was."""
        if config.teacher is None or config.teacher.train is None:
            return config.teacher.checkpoint if config.teacher else None
        remembered = read_json(run.path / "teacher.json")
        if remembered:
            return remembered["checkpoint"]
        recipe = load_config(config.teacher.train, registry=self.registry).config
        if recipe.student.model != config.teacher.model:
            raise ConfigError(
                f"teacher.model is {config.teacher.model}, but {config.teacher.train} trains a {recipe.student.model} as its student"
            )
        trained = self._once(recipe, config, "training the teacher")
        checkpoint = str(trained.path / "student.safetensors")
        write_json(run.path / "teacher.json", {"run": trained.name, "checkpoint": checkpoint})
        return checkpoint

    def _alone(self, config: Config) -> RunFolder:
        ce = config.losses.get("ce", LossConfig()).model_copy(update={"weight": 1.0})
        recipe = config.model_copy(update={"name": f"{config.name}-alone", "losses": {"ce": ce}, "teacher": None, "baseline": False})
        return self._once(recipe, config, "training the student alone")

    def _once(self, recipe: Config, asked_by: Config, why: str) -> RunFolder:
        """The run of `recipe`, on the workers and in the folders of the config that asks for it; trained only if it has not been."""
        data = recipe.data
        if data.path is None and asked_by.data.name == data.name:
            data = data.model_copy(update={"path": asked_by.data.path})
        folders = asked_by.run.model_copy(update={"name": None})
        recipe = recipe.model_copy(update={"data": data, "scale": asked_by.scale, "run": folders})
        name = f"{recipe.name}-{digest(recipe)[:8]}"
        run = RunFolder(self._runs(recipe) / name)
        if run.finished:
            self.console.say(f"{why}: done already, {run.path}")
            return run
        self.console.say(f"{why}: {name}")
        return self._advance(run, recipe) if run.path.exists() else self._start(recipe, name)

    def _train(self, run: RunFolder, config: Config, teacher: str | None) -> None:
        run.set_status("running")
        shutil.rmtree(run.path / "failures", ignore_errors=True)
        job = Job(config, run.path, self.project.data, teacher)
        with self.console.training(run, config) as screen, Watch(run.path, screen.row, screen.progress):
            if config.scale.num_workers == 0:
                train(job, self.registry, Context(device=_device(config)), FileLog(run.path, run.new_token()))
                return
            cpus, use_gpu = share_out(config.scale, self.session.nodes())
            assignment = Assignment(
                job,
                self.registry.fingerprint(),
                self.registry.local_sources(),
                tuple(self.registry.host.blocked),
                run.new_token(),
                threads=max(1, int(cpus)),
            )
            run_on_ray(self.session, assignment, config.scale.num_workers, cpus, use_gpu, config.scale.max_failures)

    # -- where -------------------------------------------------------------------------------------------------------

    def _runs(self, config: Config) -> Path:
        return Path(config.run.dir).absolute() if config.run.dir else self.project.runs

    @contextlib.contextmanager
    def _session(self, config: Config):
        """Ray for the whole experiment, where it has workers; the cluster's capacity is checked before anything else."""
        check_batch(config)
        if config.scale.num_workers == 0:
            yield
            return
        with RaySession(self.address or self.project.ray_address) as self.session:
            share_out(config.scale, self.session.nodes())
            yield


def check_batch(config: Config) -> None:
    """Raises ConfigError when the global batch cannot be split evenly over the workers."""
    size, workers = config.data.batch_size, config.scale.num_workers
    if workers > 1 and size % workers:
        below, above = size // workers * workers, (size // workers + 1) * workers
        near = f"{below} or {above}" if below else str(above)
        fits = [n for n in range(workers, 0, -1) if size % n == 0][0]
        raise ConfigError(
            f"data.batch_size is the global batch: {size} pictures cannot be split evenly over {workers} workers. "
            f"Nearest that can: data.batch_size={near}; or --num-workers {fits}"
        )


def check_same_plugins(run: RunFolder, registry: Registry, config: Config) -> None:
    """Raises MismatchError when a plugin is not what it was when the run began."""
    then = (read_json(run.path / "environment.json") or {}).get("plugins", [])
    try:
        check_fingerprint(then, registry.fingerprint())
    except KdrayError as error:
        text = str(error).replace("driver:", "then:").replace("worker:", "now:").splitlines()[1:-1]
        raise MismatchError("\n".join([f"plugins have changed since {run.name} began:", *text, "Install those it began with, or start a new run."])) from error


def _checkpoint_bytes(parts: Parts) -> int:
    student = sum(x.nbytes for x in parts.student.model.state_dict().values())
    losses = sum(x.nbytes for x in parts.objective.state_of_distillers().values())
    return 4 * student + 2 * losses  # weights, average, optimizer state


def _device(config: Config) -> torch.device:
    wanted = torch.cuda.is_available() if config.scale.use_gpu == "auto" else config.scale.use_gpu
    if wanted and not torch.cuda.is_available():
        raise ConfigError("scale.use_gpu is true, but torch sees no GPU here")
    return torch.device("cuda" if wanted else "cpu")


def _run_of(checkpoint: str | None) -> RunFolder | None:
    """The run that trained a teacher, where it was one of ours."""
    folder = Path(checkpoint).parent if checkpoint else None
    return RunFolder(folder) if folder and (folder / "status.json").exists() else None
