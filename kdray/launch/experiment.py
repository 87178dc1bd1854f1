"""All the runs that one config stands for: its teacher where none is trained yet, the student alone, the distilled
student.

Each step looks at what is there already, so that the same call starts, goes on after an interruption, and ends.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.load import digest, load_config, to_yaml
from ..config.project import Project
from ..config.schema import Config, LossConfig
from ..engine.build import Parts, build
from ..engine.context import Context
from ..engine.train import Job
from ..errors import ConfigError, MismatchError
from ..registry import Registry
from ..run.console import Console
from ..run.folder import RunFolder, read_json, refuse_taken, write_json
from ..run.metrics import FileLog
from ..run.summary import summarise
from ..run.watch import Watch
from .ray_train import run_on_ray
from .session import RaySession, share_out
from .worker import Assignment, train_here


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
        self.refuse_taken([config])
        with self._session(config), self._interruptible(self._path(config)):
            return self._start(config)

    def refuse_taken(self, configs: Iterable[Config]) -> None:
        """Raises ConfigError when a run of one of these names exists already."""
        for config in configs:
            refuse_taken(self._path(config))

    def resume(self, run: RunFolder, **scale) -> RunFolder:
        """Go on with an interrupted run, to its end, with these settings of `scale` where they are not None. A
        finished run is left as it is."""
        overrides = [f"scale.{key}={value}" for key, value in scale.items() if value is not None]
        config = load_config(run.config_file, overrides, registry=self.registry).config
        if run.finished:
            self.console.say(f"{run.name} is finished; nothing is left to do.")
            return run
        if run.is_alive:
            raise ConfigError(f"{run.name} is running just now, as process {run.status['pid']} of this machine")
        for line in check_same_plugins(run, self.registry):
            self.console.say(line)
        with self._session(config), self._interruptible(run.path):
            return self._advance(run, config)

    def check(self, config: Config) -> Parts:
        """Build everything on this process's CPU, to find what is wrong before anything is started or written."""
        check_batch(config)
        if config.scale.num_workers == 0:
            _device(config)
        if config.teacher and config.teacher.train:
            check_batch(self._recipe(config))
        checkpoint = config.teacher.checkpoint if config.teacher else None
        parts = build(config, self.registry, self.project.data, checkpoint, torch.device("cpu"))
        check_last_batch(config, len(parts.data.train))
        return parts

    # -- one run -----------------------------------------------------------------------------------------------------

    def _start(self, config: Config, name: str | None = None) -> RunFolder:
        path = self._path(config, name)
        parts = self.check(config)
        needed = _checkpoint_bytes(parts) * (config.checkpoint.keep + 1)
        del parts
        run = RunFolder.create(
            path,
            config_text=to_yaml(config),
            command=self.command,
            plugins=self.registry.fingerprint(),
            needed_bytes=needed,
        )
        return self._advance(run, config)

    def _advance(self, run: RunFolder, config: Config) -> RunFolder:
        self._tell("kdray_run_started", run, config)
        try:
            teacher = self._teacher(run, config)
            alone = self._alone(config) if config.baseline else None
            self._train(run, config, teacher)
            summary = summarise(run, config, teacher_run=_run_of(teacher), alone=alone)
            run.set_status("finished")
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                run.set_status(state, error=str(error) or type(error).__name__)
            self._tell("kdray_run_failed", run, config, error=error)
            raise
        self._tell("kdray_run_finished", run, config, summary=summary)
        return run

    def _tell(self, hook: str, run: RunFolder, config: Config, **more) -> None:
        """Call a lifecycle hook of all plugins. What they raise is shown and does not stop the run."""
        about = {"name": run.name, "path": str(run.path), "config": config.model_dump(mode="json")}
        for problem in self.registry.host.tell(hook, run=about, **more):
            self.console.say(f"warning: {problem}")

    def _teacher(self, run: RunFolder, config: Config) -> str | None:
        """The file of the teacher's weights; trained first where the config says how. The run remembers which it
        was."""
        if config.teacher is None or config.teacher.train is None:
            return config.teacher.checkpoint if config.teacher else None
        remembered = read_json(run.path / "teacher.json")
        if remembered:
            return remembered["checkpoint"]
        trained = self._once(self._recipe(config), config, "training the teacher")
        checkpoint = str(trained.path / "student.safetensors")
        write_json(run.path / "teacher.json", {"run": trained.name, "checkpoint": checkpoint})
        return checkpoint

    def _recipe(self, config: Config) -> Config:
        """The config that trains the teacher, with the scale of the run it is for. Raises ConfigError where it makes
        another network."""
        recipe = load_config(config.teacher.train, registry=self.registry).config
        wanted, made = ({"model": m.model, **m.options} for m in (config.teacher, recipe.student))
        for key in wanted.keys() | made.keys():
            if wanted.get(key) != made.get(key):
                raise ConfigError(
                    f"teacher.{key} is {wanted.get(key)}, but the student that {config.teacher.train} trains to be "
                    f"the teacher has {key} {made.get(key)}: make them equal"
                )
        return recipe.model_copy(update={"scale": config.scale})

    def _alone(self, config: Config) -> RunFolder:
        ce = config.losses.get("ce", LossConfig()).model_copy(update={"weight": 1.0})
        recipe = config.model_copy(
            update={"name": f"{config.name}-alone", "losses": {"ce": ce}, "teacher": None, "baseline": False}
        )
        return self._once(recipe, config, "training the student alone")

    def _once(self, recipe: Config, asked_by: Config, why: str) -> RunFolder:
        """The run of `recipe`, on the workers and in the folders of the config that asks for it; trained only if it
        has not been."""
        data = recipe.data
        if data.path is None and asked_by.data.name == data.name:
            data = data.model_copy(update={"path": asked_by.data.path})
        folders = asked_by.run.model_copy(update={"name": None})
        recipe = recipe.model_copy(update={"data": data, "scale": asked_by.scale, "run": folders})
        name = f"{recipe.name}-{digest(recipe)[:8]}"
        run = RunFolder(self._path(recipe, name))
        if run.finished:
            self.console.say(f"{why}: done already, {run.path}")
            return run
        self.console.say(f"{why}: {name}")
        return self._advance(run, recipe) if run.path.exists() else self._start(recipe, name)

    def _train(self, run: RunFolder, config: Config, teacher: str | None) -> None:
        run.set_status("running")
        shutil.rmtree(run.path / "failures", ignore_errors=True)
        job = Job(config, run.path, self.project.data, teacher)

        def on_row(row: dict) -> None:
            screen.row(row)
            if row["kind"] == "epoch":
                self._tell("kdray_epoch_finished", run, config, metrics=row)

        with self.console.training(run, config) as screen, Watch(run.path, on_row, screen.progress):
            if config.scale.num_workers == 0:
                train_here(job, self.registry, Context(device=_device(config)), FileLog(run.path, run.new_token()))
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

    def _path(self, config: Config, name: str | None = None) -> Path:
        runs = Path(config.run.dir).absolute() if config.run.dir else self.project.runs
        return runs / (name or config.run.name or config.name)

    @contextlib.contextmanager
    def _session(self, config: Config):
        """Ray for the whole experiment, where it has workers; the cluster's capacity is checked before anything
        else."""
        check_batch(config)
        if config.scale.num_workers == 0:
            yield
            return
        with RaySession(self.address or self.project.ray_address) as self.session:
            share_out(config.scale, self.session.nodes())
            yield

    @contextlib.contextmanager
    def _interruptible(self, path: Path):
        try:
            yield
        except KeyboardInterrupt:
            if path.exists():
                self.console.say(f"interrupted: `kdray resume {path.name}` goes on from the last checkpoint")
            raise


def check_batch(config: Config) -> None:
    """Raises ConfigError when the global batch cannot be split evenly over the workers."""
    size, workers = config.data.batch_size, config.scale.num_workers
    if workers > 1 and size % workers:
        below, above = size // workers * workers, (size // workers + 1) * workers
        near = f"{below} or {above}" if below else str(above)
        fits = next(n for n in range(workers, 0, -1) if size % n == 0)
        raise ConfigError(
            f"data.batch_size is the global batch: {size} pictures cannot be split evenly over {workers} workers. "
            f"Nearest that can: data.batch_size={near}; or --num-workers {fits}"
        )


def check_last_batch(config: Config, samples: int) -> None:
    """Raises ConfigError when the rest of an epoch would leave a worker without a sample."""
    rest = samples % config.data.batch_size
    if config.data.last_batch == "keep" and 0 < rest < config.scale.num_workers:
        raise ConfigError(
            f"{samples} training samples in batches of {config.data.batch_size} leave {rest} in an epoch's last batch, "
            f"fewer than the {config.scale.num_workers} workers: use data.last_batch=drop, another data.batch_size, "
            f"or --num-workers {rest}"
        )


def check_same_plugins(run: RunFolder, registry: Registry) -> list[str]:
    """Lines about plugins whose source has changed since the run began, at the same version.

    Raises MismatchError when one has another version now, or is gone.
    """
    then = {
        (p["distribution"], p["name"]): p for p in (read_json(run.path / "environment.json") or {}).get("plugins", [])
    }
    now = {(p["distribution"], p["name"]): p for p in registry.fingerprint() if not p["error"]}
    other, edited = [], []
    for key, was in then.items():
        found = now.get(key)
        if was["error"]:
            continue
        if found is None or found["version"] != was["version"]:
            is_now = f"now it is {found['version']}" if found else "now it is absent or broken"
            other.append(f"  {key[1]}: {was['distribution']} {was['version']} then, {is_now}")
        elif found["sha256"] != was["sha256"]:
            edited.append(f"warning: the source of plugin {key[1]} has changed since {run.name} began")
    if other:
        raise MismatchError(
            "\n".join(
                [
                    f"plugins are not what they were when {run.name} began:",
                    *other,
                    "Install those versions, or start a new run.",
                ]
            )
        )
    return edited


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
