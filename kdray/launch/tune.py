"""`kdray tune`: a search over the values of a config, and the ordinary run of its winner.

Teachers are trained and their answers are stored once, before the first trial. Ray Tune chooses and stops trials
(tune_ray.py), each of which is a run in a folder of its own (tune_trial.py); what the driver tells of them it reads
there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.dump import write
from ..config.load import digest, load_config, load_text, to_yaml
from ..config.schema import CacheConfig, Config
from ..config.tune import TuneConfig
from ..data.build import Data
from ..data.feed import Feed
from ..engine.build import Parts, build
from ..engine.context import Context
from ..engine.evaluate import evaluate
from ..errors import ConfigError, MismatchError, RunFailed
from ..registry import Registry
from ..run.folder import RunFolder, environment, refuse_taken, write_json
from ..run.search import write_results
from ..run.trials import Screen, Trial, read_trials, winner
from ..teacher.setup import Place
from .code import Code
from .experiment import Experiment, check_same_plugins
from .precompute import Precompute
from .session import RaySession
from .tune_ray import STATE, need_optuna, tuner
from .tune_share import Share, share_out_trials
from .tune_trial import Search, trial

VALIDATION = 0.1
"""Share of the training set that is held out where the config holds none out."""


@dataclass(frozen=True)
class Prepared:
    """A search that is written out: the config with every setting of its search, as text and checked."""

    text: str
    config: Config
    notes: tuple[str, ...] = ()

    @property
    def tune(self) -> TuneConfig:
        return self.config.tune

    def identity(self) -> dict:
        """What may not change while it is searched."""
        settings = self.tune.model_dump(mode="json", exclude={"max_concurrent"})
        return {"config": digest(self.config), "tune": json.loads(json.dumps(settings))}


def prepare(path: Path, overrides: list[str], registry: Registry) -> Prepared:
    """Raises ConfigError for a space that does not fit its config, or none to be had."""
    loaded = load_config(path, overrides, registry=registry)
    tune, notes = loaded.config.tune or TuneConfig(), []
    settings = tune.model_dump(mode="json")
    given = dict(loaded.given)
    if not tune.space:
        settings["space"] = default_space(loaded.config, registry)
        notes.append(f"no tune.space is written; taken: {', '.join(settings['space'])}")
    if not loaded.config.data.validation:
        given["data"] = {**given["data"], "validation": VALIDATION}
        notes.append(
            f"data.validation is 0: {VALIDATION:.0%} of the training set is held out, by which trials are compared"
        )
    text = write({**given, "tune": {k: v for k, v in settings.items() if v not in (None, [])}})
    return Prepared(text, load_text(text, str(path), registry).config, tuple(notes))


def default_space(config: Config, registry: Registry) -> dict[str, dict]:
    """What the losses of a config offer, and the learning rate over two decades."""
    space = {}
    for label, loss in config.losses.items():
        offered = registry.search_spaces.get(loss.use or label)
        for option, how in offered.space.items() if offered else ():
            if option != "weight" or isinstance(loss.weight, float):  # a weight that moves stays as it is
                space[f"losses.{label}.{option}"] = how
    lr = config.optimizer.lr
    if (config.tune or TuneConfig()).searcher == "grid":
        raise ConfigError("tune.searcher: a grid needs its values: write tune.space")
    return {**space, "optimizer.lr": {"loguniform": [lr / 10, lr * 10]}}


class Tune(Experiment):
    # -- the verb ----------------------------------------------------------------------------------------------------

    def plan(self, prepared: Prepared) -> dict:
        """What `start` would do, of which nothing is done."""
        config = prepared.config
        parts = self._check_search(prepared)
        return {
            "name": config.run.name or config.name,
            "searcher": prepared.tune.searcher,
            "scheduler": prepared.tune.stops,
            "metric": prepared.tune.metrics,
            "trials": prepared.tune.count,
            "epochs": config.schedule.epochs,
            "epochs_of_full_trials": prepared.tune.count * _most_epochs(config),
            "trial_workers": prepared.tune.trial_workers,
            "train": len(parts.data.train),
            "validation": len(parts.data.validation),
            "space": {path: d.model_dump(mode="json") for path, d in prepared.tune.space.items()},
            "notes": [*prepared.notes, *self._why_live(config, parts)],
        }

    def start(self, prepared: Prepared) -> dict:
        """A new search, to its end, and the run of its winner."""
        config = prepared.config
        path = self._path(config)
        self._refuse_taken(path)
        for note in prepared.notes:
            self.console.say(note)
        parts = self._check_search(prepared)
        with RaySession(self.address or self.project.ray_address) as self.session:
            share = share_out_trials(prepared.tune, self.session.nodes())
            run = self._create(path, prepared, parts.data)
            return self._advance_search(run, prepared, parts.data, share)

    def resume(self, name: str, given: Prepared | None) -> dict:
        """Go on with an interrupted search. given: what it is expected to be.

        Raises MismatchError where it has begun with another config, other data or other plugins."""
        run = find_search(name, self.project.runs)
        if run.is_alive:
            raise ConfigError(f"{run.name} is running just now, as process {run.status['pid']} of this machine")
        file = run.path / "tune.yaml"
        prepared = Prepared(file.read_text(), load_text(file.read_text(), str(file), self.registry).config)
        if given and (changed := _differences(prepared.identity(), given.identity())):
            raise MismatchError(
                f"{run.name} has begun with another config ({', '.join(changed)}): go on with what it has by "
                f"`kdray tune --resume {run.name}`, or start a search of another name with --name"
            )
        if run.finished:
            self.console.say(f"{run.name} is finished; nothing is left to do.")
            return run.summary
        for line in check_same_plugins(run, self.registry):
            self.console.say(line)
        data = self._check_search(prepared).data
        if data.fingerprint() != run.data:
            raise MismatchError(f"the pictures of {config_data(prepared)} are not those that {run.name} has begun with")
        with RaySession(self.address or self.project.ray_address) as self.session:
            return self._advance_search(run, prepared, data, share_out_trials(prepared.tune, self.session.nodes()))

    # -- before the first trial --------------------------------------------------------------------------------------

    def _check_search(self, prepared: Prepared) -> Parts:
        if prepared.tune.searcher == "optuna":
            need_optuna()
        return self.check(prepared.config)

    def _refuse_taken(self, path: Path) -> None:
        if (path / "tune.yaml").exists():
            raise ConfigError(
                f"a search named '{path.name}' exists already at {path}: go on with it by "
                f"`kdray tune --resume {path.name}`, or choose another name with --name"
            )
        refuse_taken(path)

    def _create(self, path: Path, prepared: Prepared, data: Data) -> RunFolder:
        run = RunFolder(path)
        try:
            path.mkdir(parents=True)
            (path / "command.txt").write_text(self.command + "\n")
            (path / "environment.json").write_text(
                json.dumps(environment(self.registry.fingerprint()), indent=2) + "\n"
            )
            write_json(path / "data.json", {"fingerprint": data.fingerprint(), "recipe": "of a search"})
            (path / "tune.yaml").write_text(prepared.text)
            run.set_status("created")
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise ConfigError(f"the folder {path} cannot be used: {error.strerror or error}") from error
        return run

    def _advance_search(self, run: RunFolder, prepared: Prepared, data: Data, share: Share) -> dict:
        try:
            run.set_status("running")
            checkpoints = self._trained_teachers(prepared.config, data)
            caches = self._shared_caches(prepared.config, checkpoints, data)
            search = Search(
                text=prepared.text,
                folder=run.path,
                command=self.command,
                data_root=self.project.data,
                data=data.fingerprint(),
                checkpoints=checkpoints,
                caches=caches,
                code=Code.of(self.registry),
                cpus=share.cpus,
                gpus=share.gpus,
            )
            # Also after the last trial: what it leaves when it is stopped, the winner's run needs.
            with _swept() if prepared.tune.trial_workers > 1 else contextlib.nullcontext():
                self._search(run, prepared, search, share)
                summary = self._finish(run, prepared)
            run.set_status("finished")
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            with contextlib.suppress(OSError):
                run.set_status("interrupted" if interrupted else "failed", error=str(error) or type(error).__name__)
            if interrupted:
                self.console.say(f"interrupted: `kdray tune --resume {run.name}` goes on with it")
            raise
        return summary

    def _trained_teachers(self, config: Config, data: Data) -> dict[str, str]:
        """The file of its weights by teacher; those that are not trained yet are trained."""
        checkpoints, untrained = self._weights(config, data.fingerprint())
        for name in untrained:
            run = self._trained(config, name, data.fingerprint())
            checkpoints[name] = str(run.path / "student.safetensors")
        return checkpoints

    def _shared_caches(self, config: Config, checkpoints: dict[str, str], data: Data) -> dict[str, Place]:
        """The teachers' answers, computed once for all trials where that is possible; else it is said why not."""
        if not config.all_teachers:
            return {}
        parts = build(config, self.registry, self.project.data, checkpoints, torch.device("cpu"), data=data)
        self._check_accuracies(config, parts)
        for line in self._why_live(config, parts):
            self.console.say(line)
        served = self._served(config, parts)
        if not served:
            return {}
        cached = with_caches(config, served)
        precompute = Precompute(self.registry, self.project, self.console, self.command, self.address)
        if too_large := _too_large(precompute, cached, parts, self.project.cache):
            self.console.say(too_large)
            return {}
        precompute.run(cached)
        return precompute.places(cached, parts)

    def _check_accuracies(self, config: Config, parts: Parts) -> None:
        """Raises ConfigError for a teacher below its min_accuracy. Trials do not look: they have no test set."""
        for name, section in config.all_teachers.items():
            if section.min_accuracy is not None:
                teacher = parts.teachers.by_name[name]
                feed = Feed(parts.data.test, parts.data.evaluate, config.data.threads, parts.device)
                top1 = evaluate(lambda x, ask=teacher: ask(x).logits, parts.data.test, feed, Context())["top1"]
                if top1 < section.min_accuracy:
                    raise ConfigError(
                        f"{name}: its accuracy on the test set is {top1:.2%}, below its min_accuracy "
                        f"({section.min_accuracy:.2%})"
                    )

    def _why_live(self, config: Config, parts: Parts) -> list[str]:
        """A line for each reason why the trials ask a live teacher."""
        if not config.all_teachers:
            return []
        if moving := [path for path in config.tune.space if _moves_answers(path)]:
            return [f"{', '.join(moving)} changes what the teacher is asked: its answers cannot be shared, it is live"]
        beyond = {name: parts.needs[name].beyond for name in config.all_teachers if parts.needs[name].beyond}
        return [
            f"{name} is live in the trials: losses.{label} reads its {' and '.join(outputs)}, which no cache holds"
            for name, of_losses in beyond.items()
            for label, outputs in of_losses.items()
        ]

    def _served(self, config: Config, parts: Parts) -> set[str]:
        """The teachers whose answers all trials can share."""
        if any(map(_moves_answers, config.tune.space)):
            return set()
        return {name for name in config.all_teachers if not parts.needs[name].beyond}

    # -- the trials --------------------------------------------------------------------------------------------------

    def _search(self, run: RunFolder, prepared: Prepared, search: Search, share: Share) -> None:
        from ray import tune

        from .tune_telling import Telling

        settings, config = prepared.tune, prepared.config
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told from the trial's folder
        trainable = tune.with_resources(tune.with_parameters(trial, search=search), share.of_a_trial())
        self.console.say(
            f"search {run.path}: {settings.count} trials of {config.schedule.epochs} epochs, {share.at_once} at a "
            f"time; {settings.searcher}" + (f", {settings.stops}" if settings.stops != "none" else "")
        )
        screen = Screen(self.console, run.path, settings.count, settings.metrics)
        Telling.folder, Telling.screen = run.path, screen
        try:
            tuner(
                trainable,
                settings,
                config.seed,
                _most_epochs(config),
                run.path,
                share.at_once,
                config.scale.max_failures,
                [Telling()],
            ).fit()
        finally:
            screen.close()

    def _finish(self, run: RunFolder, prepared: Prepared) -> dict:
        """results.parquet, best.yaml, plots, the run of the winner, and what to tell of all that."""
        from ..run.search_plots import draw

        settings, trials = prepared.tune, read_trials(run.path)
        best = winner(trials, settings.metrics[0])
        if best is None:
            first = next((t.error for t in trials if t.error), "no trial has come to the end of an epoch")
            raise RunFailed(f"all {len(trials)} trials failed; the first with:\n{first}")
        write_results(trials, run.path / "results.parquet")
        file = run.path / "best.yaml"
        chosen = self._best(best, prepared)
        file.write_text(_heading(run, best, settings) + to_yaml(chosen))
        plots = draw(trials, settings.space, settings.metrics[0], run.path)
        runs = [self._winner_run(run, chosen, seed) for seed in settings.seeds or [chosen.seed]]
        summary = {
            "name": run.name,
            "path": str(run.path.resolve()),
            "best_yaml": str(file.resolve()),
            "results": str((run.path / "results.parquet").resolve()),
            "plots": [str(plot.resolve()) for plot in plots],
            "metrics": settings.metrics,
            "winner": {"trial": best.number, "values": best.values, **best.metrics, "epochs": best.epochs},
            "trials": {state: sum(t.state == state for t in trials) for state in ("finished", "stopped", "failed")},
            "epochs": sum(t.epochs for t in trials),
            "epochs_of_full_trials": settings.count * _most_epochs(prepared.config),
            "runs": [r.summary for r in runs],
        }
        write_json(run.path / "summary.json", summary)
        shutil.rmtree(run.path / STATE, ignore_errors=True)
        for each in trials:
            shutil.rmtree(Path(each.path) / "checkpoints", ignore_errors=True)
        return summary

    def _best(self, best: Trial, prepared: Prepared) -> Config:
        """The winner's config as an ordinary one, with the workers that its trial had."""
        base = prepared.config
        found = load_config(Path(best.path) / "config.yaml", registry=self.registry).config
        return found.model_copy(
            update={
                "name": f"{base.name[:95]}-best",
                "run": base.run.model_copy(update={"name": None}),
                "trackers": base.trackers,
                "checkpoint": base.checkpoint,
                "baseline": base.baseline,
            }
        )

    def _winner_run(self, run: RunFolder, config: Config, seed: int) -> RunFolder:
        """The winner as an ordinary run inside the search's folder, begun, gone on with, or found finished."""
        name = f"winner-seed{seed}"
        config, found = config.model_copy(update={"seed": seed}), RunFolder(run.path / name)
        if found.finished:
            return found
        if (found.path / "status.json").exists():
            return self._advance(found, config)
        shutil.rmtree(found.path, ignore_errors=True)
        return self._start(config, f"{run.name}/{name}")


@contextlib.contextmanager
def _swept(every: float = 1.0) -> Iterator[None]:
    """While it is open, the workers of trials that were stopped are freed."""
    from .groups import sweep_orphans

    stop = threading.Event()

    def sweep() -> None:
        while not stop.wait(every):
            sweep_orphans()

    thread = threading.Thread(target=sweep, name="kdray-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _heading(run: RunFolder, best: Trial, settings: TuneConfig) -> str:
    got = ", ".join(f"{metric} {best.metrics[metric]:.6g}" for metric in settings.metrics)
    lines = [f"# Trial {best.number} of the search {run.name}: {got} after {best.epochs} epochs."]
    if settings.searcher == "pbt":
        lines.append(
            f"# These are the values it ended with; it has had others before (trials/{best.number:03}/values.json)."
        )
    return "\n".join(lines) + "\n"


def find_search(name: str, folder: Path) -> RunFolder:
    """A search by its name in `folder`, or by its path."""
    for path in (Path(name), folder / name):
        if (path / "tune.yaml").exists():
            return RunFolder(path.resolve())
    raise ConfigError(f"no search '{name}' in {folder}: none of its folders of that name has a tune.yaml")


def config_data(prepared: Prepared) -> str:
    return prepared.config.data.name


def with_caches(config: Config, names: set[str]) -> Config:
    """`config` with a cache for these teachers, and for no other."""
    changed = {}
    for name, section in config.all_teachers.items():
        cache = (section.cache or CacheConfig()).model_copy(update={"fill": False})
        changed[name] = section.model_copy(update={"cache": cache if name in names else None})
    return config.model_copy(update={"teacher": changed["teacher"]} if config.teacher else {"teachers": changed})


def _moves_answers(path: str) -> bool:
    """Whether other values at a path ask the teacher about other pictures, or make it another teacher."""
    section, _, key = path.partition(".")
    return (
        section in ("seed", "teacher", "teachers")
        or (section == "data" and key != "batch_size")
        or path in ("schedule", "schedule.epochs", "engine", "engine.precision", "losses")
        or (section == "losses" and key.rpartition(".")[2] in ("use", "teacher"))
        or (section == "losses" and "." not in key)
    )


def _too_large(precompute: Precompute, config: Config, parts: Parts, folder: Path) -> str:
    """Why the answers are not stored; "" where they can be."""
    plans = [work.plan for work in precompute.works(config, parts)]
    wanted = sum(plan.bytes_a_picture * plan.missing for plan in plans if "://" not in plan.store.cache.where)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if wanted <= free / 2:
        return ""
    return f"the teacher's answers would take {wanted / 1e9:,.1f} GB of the {free / 1e9:,.1f} GB free: it is live"


def _most_epochs(config: Config) -> int:
    dimension = config.tune.space.get("schedule.epochs")
    return max(dimension.values) if dimension else config.schedule.epochs


def _differences(a: dict, b: dict) -> list[str]:
    """What differs between two identities, in the words of a config."""
    found = [] if a["config"] == b["config"] else ["values outside of tune"]
    keys = a["tune"].keys() | b["tune"].keys()
    return found + sorted(f"tune.{key}" for key in keys if a["tune"].get(key) != b["tune"].get(key))
