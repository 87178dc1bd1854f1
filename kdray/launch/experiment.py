"""All the runs that one config stands for: its teacher where none is trained yet, the student alone, the distilled
student.

Each step looks at what is there already, so that the same call starts, goes on after an interruption, and ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..clock import Part, of_run, tell, timed
from ..config.load import digest, load_config, to_yaml
from ..config.project import Project
from ..config.schema import Config, LossConfig
from ..data.build import Data, load_data
from ..distiller import Distiller
from ..engine.allocator import keep_freed_memory
from ..engine.build import Parts, build, new_optimizer
from ..engine.context import Context
from ..engine.sharding import check_sharding
from ..engine.train import Job, check_last_batch, check_same_data
from ..errors import ConfigError, MismatchError, Stopped
from ..registry import Registry
from ..run.asking import STOP, answer, ask, asked, forget
from ..run.console import Console
from ..run.folder import RunFolder, environment, finished_run, read_json, refuse_taken, write_json
from ..run.forms import Environment, Teachers
from ..run.metrics import FileLog
from ..run.plan import plan
from ..run.summary import read_summary, summarise
from ..run.tracking import Tracking, check_trackers
from ..run.watch import Watch
from ..teacher.check import usable_caches
from ..teacher.setup import Place
from ..testing.mixed import check_mixed
from .answering import Errand
from .arithmetic import decided
from .code import Code
from .elastic import run_elastic
from .nodes import check_nodes, refuse_vanishing
from .placement import AskingPool, TeacherPool, held_by, place, placed_teachers
from .pruned import FILE, keeps_pruned, settled, told, write
from .ray_train import run_on_ray
from .session import RaySession, resources, share_out
from .signals import graceful
from .worker import Assignment, disk_is_full, train_here


@dataclass
class Experiment:
    registry: Registry
    project: Project
    console: Console
    command: str
    address: str | None = None
    """The Ray cluster, for runs with workers; None starts one here."""
    profile: bool = field(default=False, kw_only=True)
    """Whether each run tells where its time goes."""
    under_way: list[Path] = field(default_factory=list, kw_only=True)
    """Folders of the runs that this one is part of, the outermost first, and its own."""

    def __post_init__(self):
        if not torch.cuda.is_available():
            keep_freed_memory()

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def start(self, config: Config) -> RunFolder:
        """A new run of `config`, to its end."""
        self.refuse_taken([config])
        path = self._path(config)
        with self._session(config), self._interruptible(path), of_run(path.name):
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
            read_summary(run)
            self.console.say(f"{run.name} is finished; nothing is left to do.")
            return run
        run.refuse_alive()
        if read_json(run.path / "environment.json", Environment) is None:
            self.console.say(f"warning: {run.path / 'environment.json'} is damaged: its plugins cannot be compared")
            write_json(run.path / "environment.json", environment(self.registry.fingerprint()))
        for line in check_same_plugins(run, self.registry):
            self.console.say(line)
        data = self.check(config).data
        if not run.data:
            raise MismatchError(
                f"{run.path / 'data.json'} is damaged or absent: whether these are the pictures that the run began "
                "with cannot be told. Put it back from a copy, or start a new run"
            )
        check_same_data(data, run.data)
        with self._session(config), self._interruptible(run.path), of_run(run.name):
            return self._advance(run, config, data)

    def check(self, config: Config) -> Parts:
        """Build everything on this process's CPU, to find what is wrong before anything is started or written."""
        self.registry.host.ask("kdray_configure", config=config.model_dump(mode="json"))
        check_trackers(config, self.registry)
        check_batch(config)
        if config.scale.num_workers == 0:
            device_here(config)
        for name, teacher in config.all_teachers.items():
            if teacher.train:
                check_batch(self._recipe(config, name))
        given = {name: t.checkpoint for name, t in config.all_teachers.items() if t.checkpoint}
        parts = build(config, self.registry, self.project.data, given, torch.device("cpu"))
        check_last_batch(config, len(parts.data.train), config.scale.most)
        check_sharding(config, parts.objective)
        if trained := [p for p in parts.objective.parameters() if p.requires_grad]:
            new_optimizer(config, self.registry, trained)
        for label, loss in config.losses.items() if config.data.mix else ():
            check_mixed(label, self.registry.get("distillers", loss.use or label).cls, loss.options)
        return parts

    def plan(self, config: Config) -> dict:
        """What `start` would do, of which nothing is done: see `kdray.run.plan`."""
        parts = self.check(config)
        caches = self.caches_of(config, parts.data)
        weights, _ = self._weights(config, parts.data.fingerprint())
        return plan(config, parts, weights, caches or {})

    # -- one run -----------------------------------------------------------------------------------------------------

    def _start(self, config: Config, name: str | None = None) -> RunFolder:
        path = self._path(config, name)
        parts = self.check(config)
        caches = self.caches_of(config, parts.data)
        needed = _checkpoint_bytes(parts) * (config.checkpoint.keep + 1)
        data, text, begins_with = parts.data, to_yaml(config), None
        if keeps_pruned(config, path):
            begins_with = parts
            self.console.say(told(parts))
            text = to_yaml(settled(config, parts, FILE))  # the name alone: the folder may be moved
            config = settled(config, parts, str(path / FILE))
        del parts
        run = RunFolder.create(
            path,
            config_text=text,
            command=self.command,
            plugins=self.registry.fingerprint(),
            data=data.fingerprint(),
            recipe=digest(config),
            needed_bytes=needed,
        )
        if begins_with:
            write(begins_with, path)
            del begins_with
        return self._advance(run, config, data, caches)

    def _advance(
        self, run: RunFolder, config: Config, data: Data | None = None, caches: dict[str, Place] | None = None
    ) -> RunFolder:
        """data, caches: where they are known already."""
        run.sweep()
        try:
            with self._driven(run):
                self._tell("kdray_run_started", run, config)
                teachers = self._teachers(run, config)
                if caches is None:
                    caches = self._caches(config, teachers, data)
                if config.scale.num_workers:
                    data = None  # the workers load their own
                alone = self._alone(run, config) if config.baseline else None
                self._train(run, config, teachers, caches, data)
                teacher_runs = {name: _run_of(checkpoint) for name, checkpoint in teachers.items()}
                summary = summarise(run, config, teacher_runs, alone)
        except BaseException as error:
            self._tell("kdray_run_failed", run, config, error=error)
            if full := disk_is_full(error, run.path):
                raise full from error
            raise
        self._tell("kdray_run_finished", run, config, summary=summary)
        return run

    @contextlib.contextmanager
    def _driven(self, run: RunFolder) -> Iterator[None]:
        """While it is open, a run, a search or a table is under way, and what is part of it stops where it is asked to;
        afterwards its status says how it has ended."""
        self.under_way.append(run.path)
        try:
            forget(run.path)
            run.set_status("running")
            yield
            run.set_status("finished")
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                run.set_status(state, error=str(error) or type(error).__name__)
            raise
        finally:
            self.under_way.pop()

    def _tell(self, hook: str, run: RunFolder, config: Config, **more) -> None:
        """Call a lifecycle hook of all plugins. What they raise is shown and does not stop the run."""
        for problem in self.registry.host.tell(hook, run=_about(run, config), **more):
            self.console.say(f"warning: {problem}")

    def _teachers(self, run: RunFolder, config: Config) -> dict[str, str]:
        """The file of its weights by teacher; trained first where the config says how. The run remembers which they
        were."""
        remembered, found = read_json(run.path / "teachers.json", Teachers) or {}, {}
        for name, teacher in config.all_teachers.items():
            if teacher.train and name not in remembered:
                trained = self._trained(config, name, run.data)
                file = str(trained.path / "student.safetensors")
                remembered = {**remembered, name: {"run": trained.name, "checkpoint": file}}
                write_json(run.path / "teachers.json", remembered)
            checkpoint = remembered[name]["checkpoint"] if teacher.train else teacher.checkpoint
            if checkpoint:
                found[name] = checkpoint
        return found

    def _trained(self, config: Config, name: str, data: str) -> RunFolder:
        """The run of a teacher that the config says how to train. data: fingerprint of the config's."""
        which = "the teacher" if config.teacher else f"teacher {name}"
        return self._once(self._recipe(config, name), data, config, f"training {which}")

    def _weights(self, config: Config, pictures: str) -> tuple[dict[str, str], list[str]]:
        """The file of its weights by teacher, and the teachers that are still to be trained. pictures: fingerprint of
        the config's data."""
        found, untrained = {}, []
        for name, teacher in config.all_teachers.items():
            if teacher.train:
                _, run = self._planned(self._recipe(config, name), pictures, config)
                if run.finished:
                    found[name] = str(run.path / "student.safetensors")
                else:
                    untrained.append(name)
            elif teacher.checkpoint:
                found[name] = teacher.checkpoint
        return found, untrained

    def caches_of(self, config: Config, data: Data) -> dict[str, Place] | None:
        """The caches, asked for before anything is written; None where a teacher must be trained before. Raises
        MismatchError where nothing can have been stored."""
        checkpoints, untrained = self._weights(config, data.fingerprint())
        for name in untrained:
            cache = config.all_teachers[name].cache
            if cache and not cache.fill and not cache.fallback:
                raise MismatchError(
                    f"{name} is to answer from a cache, and is not trained yet: nothing is stored. `kdray precompute` "
                    "with the same config does both."
                )
        found = self._caches(config, checkpoints, data, untrained)
        return None if untrained else found

    def _caches(
        self, config: Config, teachers: dict[str, str], data: Data | None, untrained: Collection[str] = ()
    ) -> dict[str, Place]:
        """The caches of teachers' answers that the run is to use."""
        if not any(teacher.cache for teacher in config.all_teachers.values()):
            return {}
        parts = build(config, self.registry, self.project.data, teachers, torch.device("cpu"), data=data)
        say = (lambda text: None) if untrained else self.console.say  # what is known so far is said again later
        return usable_caches(config, parts, self.project.cache, say, untrained)

    def _recipe(self, config: Config, name: str) -> Config:
        """The config that trains a teacher, with the scale of the run it is for. Raises ConfigError where it makes
        another network."""
        teacher, key = config.all_teachers[name], "teacher" if config.teacher else f"teachers.{name}"
        try:
            recipe = decided(load_config(teacher.train, registry=self.registry).config, self.address)
        except ConfigError as error:
            if Path(teacher.train).exists():
                raise  # it says itself where it is wrong
            raise ConfigError(f"{key}.train: {error}") from None
        for label, loss in recipe.losses.items():
            if self.registry.get("distillers", loss.use or label).cls.deployed is not Distiller.deployed:
                raise ConfigError(
                    f"{key}.train: {teacher.train} trains a student with the head of its loss '{label}', which is not "
                    f"the network {teacher.model}: a teacher keeps its own head"
                )
        if recipe.student.prune:
            raise ConfigError(f"{key}.train: {teacher.train} prunes its student, and a teacher is trained whole")
        wanted, made = ({"model": m.model, **m.options} for m in (teacher, recipe.student))
        for option in wanted.keys() | made.keys():
            if wanted.get(option) != made.get(option):
                raise ConfigError(
                    f"{key}.{option} is {wanted.get(option)}, but the student that {teacher.train} trains to be "
                    f"the teacher has {option} {made.get(option)}: make them equal"
                )
        return recipe.model_copy(update={"scale": config.scale})

    def _alone(self, run: RunFolder, config: Config) -> RunFolder:
        given = [loss for label, loss in config.losses.items() if (loss.use or label) == "ce"]
        ce = (given[0] if given else LossConfig()).model_copy(update={"use": None, "weight": 1.0})
        recipe = config.model_copy(
            update={
                "name": f"{config.name}-alone",
                "data": config.data.model_copy(update={"extra_views": {}}),
                "losses": {"ce": ce},
                "teacher": None,
                "teachers": {},
                "baseline": False,
            }
        )
        return self._once(recipe, run.data, config, "training the student alone")

    def _once(self, recipe: Config, pictures: str, asked_by: Config, why: str) -> RunFolder:
        """The run of `recipe`, trained only if it has not been."""
        recipe, run = self._planned(recipe, pictures, asked_by)
        if run.finished:
            self.console.say(f"{why}: done already, {run.path}")
            return run
        if run.is_alive:
            raise ConfigError(f"{why}: {run.path} is trained just now by process {run.status['pid']}; wait for it")
        self.console.say(f"{why}: {run.name}")
        with of_run(run.name):
            return self._advance(run, recipe) if run.path.exists() else self._start(recipe, run.name)

    def _planned(self, recipe: Config, pictures: str, asked_by: Config) -> tuple[Config, RunFolder]:
        """`recipe` with the workers, folders and trackers of the config that asks for it, and its run, there or not: a
        finished one of any name, else one whose name says by which recipe on which pictures. pictures: fingerprint of
        the data of that config."""
        data = recipe.data
        if data.path is None and asked_by.data.name == data.name:
            data = data.model_copy(update={"path": asked_by.data.path})
        folders = asked_by.run.model_copy(update={"name": None})
        shared = {"scale": asked_by.scale, "run": folders, "trackers": asked_by.trackers}
        recipe = recipe.model_copy(update={"data": data, **shared})
        same = (data.name, data.path, data.options) == (asked_by.data.name, asked_by.data.path, asked_by.data.options)
        if not same:
            pictures = load_data(data, recipe.seed, self.registry, self.project.data).fingerprint()
        name = f"{recipe.name}-{hashlib.sha256((digest(recipe) + pictures).encode()).hexdigest()[:8]}"
        run = RunFolder(self._path(recipe, name))
        done = None if run.finished else finished_run(run.path.parent, digest(recipe), pictures)
        return recipe, done or run

    def _train(
        self, run: RunFolder, config: Config, teachers: dict[str, str], caches: dict[str, Place], data: Data | None
    ) -> None:
        shutil.rmtree(run.path / "failures", ignore_errors=True)
        for file in run.path.glob("worker-*"):
            file.unlink()
        asked_in = tuple(self.under_way[:-1])

        def stop() -> None:
            ask(run.path, STOP)
            self.console.say("stopping with a checkpoint, within a few steps; Ctrl-C again ends at once, without one")

        def refuse_when_asked() -> None:
            if asked((run.path, *asked_in)) == STOP:
                answer(run.path, STOP)
                raise Stopped("stopped while it waited for room in the cluster")

        def on_row(row: dict) -> None:
            screen.row(row)
            tracking.row(row)
            match row["kind"]:
                case "step":
                    self._tell("kdray_step_finished", run, config, metrics=row)
                case "epoch":
                    self._tell("kdray_epoch_finished", run, config, metrics=row)
                case "checkpoint":
                    path = str(run.path / "checkpoints" / row["path"])
                    self._tell("kdray_checkpoint_saved", run, config, path=path)

        with (
            self.console.training(run, config) as screen,
            Tracking(config, self.registry, _about(run, config), self.console.say) as tracking,
            Watch(run.path, on_row, screen.progress),
            graceful(stop),
            self._placed(config, teachers, caches, refuse_when_asked) as placed,
        ):
            job = Job(*(config, run.path, self.project.data, teachers, caches, placed, run.data), profile=self.profile)
            token = run.new_token()
            if config.scale.num_workers == 0:
                log = FileLog(run.path, token, asked_in)
                train_here(job, self.registry, Context(device=device_here(config)), log, data)
                return
            cpus, use_gpu = share_out(config.scale, self.session.nodes())
            assignment = Assignment(job, Code.of(self.registry), token, asked_in, threads=max(1, int(cpus)))
            scale = config.scale
            with timed(Part.WORKERS):
                if scale.elastic:
                    run_elastic(self.session, assignment, scale, cpus, use_gpu, self.console.say)
                else:
                    run_on_ray(
                        *(self.session, assignment, scale.num_workers, cpus, use_gpu, scale.max_failures),
                        self.console.say,
                    )
                if self.profile:
                    tell(run.rows("profile")[-1]["seconds"])

    @contextlib.contextmanager
    def _placed(
        self, config: Config, checkpoints: dict[str, str], caches: dict[str, Place], look: Callable[[], None]
    ) -> Iterator[dict[str, AskingPool]]:
        """The ways to the teachers that answer in actors of their own; a cache goes before. They are started when the
        cluster has room for all of the run; while it has not, `look` is called again and again."""
        if config.scale.num_workers or placed_teachers(config, caches):
            self.session.wait_for_room(self._wanted(config, caches), self.console.say, look)
        with contextlib.ExitStack() as stack:
            found = {}
            for name, section in placed_teachers(config, caches).items():
                errand = Errand(
                    *(config, self.project.data, checkpoints, {}),
                    Code.of(self.registry),
                    threads=max(1, int(section.placement.cpus)),
                )
                pool = stack.enter_context(TeacherPool(name, section.placement, errand, config.scale.max_failures))
                stack.enter_context(self.session.hold(pool.taken()))
                found[name] = AskingPool(pool.names, section.placement.ahead)
            yield found

    # -- where -------------------------------------------------------------------------------------------------------

    def _path(self, config: Config, name: str | None = None) -> Path:
        runs = Path(config.run.dir).absolute() if config.run.dir else self.project.runs
        return runs / (name or config.run.name or config.name)

    @contextlib.contextmanager
    def _session(self, config: Config):
        """Ray for the whole experiment, where it has workers; the cluster's capacity is checked before anything
        else."""
        check_batch(config)
        refuse_vanishing(self._path(config))
        placed = placed_teachers(config)
        if config.scale.num_workers == 0 and not placed:
            yield
            return
        with RaySession(self.address or self.project.ray_address) as self.session:
            self._wanted(config)
            self._check_nodes(config)
            yield

    def _check_nodes(self, config: Config) -> None:
        """Raises ConfigError where a node of a cluster that was joined lacks what a worker needs."""
        if self.session.joined:
            runs = self._path(config).parent
            check_nodes(self.session.ray, self.session.addresses(), runs, files_of(config, self.project))

    def _wanted(self, config: Config, caches: Collection[str] = ()) -> list[dict[str, float]]:
        """What a run takes of the cluster, for each actor and each worker. Raises ConfigError where it has less."""
        nodes, wanted = self.session.nodes(), []
        for name, section in placed_teachers(config, caches).items():
            nodes = place(name, section.placement, nodes)
            wanted += section.placement.workers * [held_by(section.placement)]
        if config.scale.num_workers:
            wanted += config.scale.fewest * [resources(*share_out(config.scale, nodes))]
        return wanted

    @contextlib.contextmanager
    def _interruptible(self, path: Path):
        try:
            yield
        except KeyboardInterrupt:
            if path.exists():
                self.console.say(f"interrupted: `{RunFolder(path).how_to_resume}` goes on with it")
            raise


def files_of(config: Config, project: Project) -> dict[str, Path]:
    """What a worker reads on its own node, whether it is there or not."""
    found = {"the data folder": Path(config.data.path or project.data / config.data.name)}
    networks = {
        "the student": config.student,
        **{n if n == "teacher" else f"teacher {n}": t for n, t in config.all_teachers.items()},
    }
    for name, network in networks.items():
        if network.checkpoint:
            found[f"the checkpoint of {name}"] = Path(network.checkpoint)
    for name, teacher in config.all_teachers.items():
        if teacher.cache and "://" not in (where := teacher.cache.path or str(project.cache)):
            found[f"the cache of {name}"] = Path(where).expanduser().absolute()
    return found


def check_batch(config: Config) -> None:
    """Raises ConfigError when the global batch cannot be split evenly over the workers. Where their number follows the
    cluster the parts may be uneven, which costs speed only."""
    size, workers = config.data.batch_size, config.scale.most
    if config.scale.elastic:
        if size < workers:
            raise ConfigError(
                f"data.batch_size is the global batch: {size} pictures are not enough for {workers} workers. "
                f"Take --num-workers {min(size, config.scale.fewest)}..{size}"
            )
    elif workers > 1 and size % workers:
        below, above = size // workers * workers, (size // workers + 1) * workers
        near = f"{below} or {above}" if below else str(above)
        fits = next(n for n in range(workers, 0, -1) if size % n == 0)
        raise ConfigError(
            f"data.batch_size is the global batch: {size} pictures cannot be split evenly over {workers} workers. "
            f"Nearest that can: data.batch_size={near}; or --num-workers {fits}"
        )


def check_same_plugins(run: RunFolder, registry: Registry) -> list[str]:
    """Lines about plugins whose source has changed since the run began, at the same version.

    Raises MismatchError when one has another version now, or is gone.
    """
    then = {
        (p["distribution"], p["name"]): p
        for p in (read_json(run.path / "environment.json", Environment) or {}).get("plugins", [])
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


def _about(run: RunFolder, config: Config) -> dict:
    """A run as plugins get to know it."""
    return {"name": run.name, "path": str(run.path), "config": config.model_dump(mode="json")}


def _checkpoint_bytes(parts: Parts) -> int:
    student = sum(x.nbytes for x in parts.student.model.state_dict().values())
    losses = sum(x.nbytes for x in parts.objective.state_of_distillers().values())
    return 4 * student + 2 * losses  # weights, average, optimizer state


def device_here(config: Config) -> torch.device:
    wanted = torch.cuda.is_available() if config.scale.use_gpu == "auto" else config.scale.use_gpu
    if wanted and not torch.cuda.is_available():
        raise ConfigError("scale.use_gpu is true, but torch sees no GPU here")
    return torch.device("cuda" if wanted else "cpu")


def _run_of(checkpoint: str) -> RunFolder | None:
    """The run that trained a teacher, where it was one of ours."""
    folder = Path(checkpoint).parent
    return RunFolder(folder) if (folder / "status.json").exists() else None
