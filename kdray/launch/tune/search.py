"""`kdray tune`: a search over the values of a config, and the ordinary run of its winner.

Teachers are trained and their answers are stored once, before the first trial. Ray Tune chooses and stops trials
(tuner.py), each of which is a run in a folder of its own (trial.py); what the driver tells of them it reads there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ...config.load import load_text, to_yaml
from ...config.schema import Config
from ...data.build import Data
from ...engine.build import Parts, build
from ...errors import ConfigError, MismatchError, RunFailed
from ...run.folder import RunFolder, environment, find_any, refuse_taken, write_json
from ...run.search import write_results
from ...run.trials import Screen, read_trials, winner
from ...teacher.setup import Place
from ..code import Code
from ..experiment import Experiment, check_same_plugins
from ..groups import swept
from ..nodes import refuse_vanishing
from ..precompute import Precompute
from ..session import RaySession
from .answers import check_accuracies, served, too_large, why_live, with_caches
from .prepared import Prepared, differences, most_epochs
from .share import Share, share_out_trials
from .trial import Search, trial
from .tuner import STATE, need_optuna, tuner
from .winner import best_config, heading


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
            "epochs_of_full_trials": prepared.tune.count * most_epochs(config),
            "trial_workers": prepared.tune.trial_workers,
            "train": len(parts.data.train),
            "validation": len(parts.data.validation),
            "space": {path: d.model_dump(mode="json") for path, d in prepared.tune.space.items()},
            "notes": [*prepared.notes, *why_live(config, parts)],
        }

    def start(self, prepared: Prepared) -> dict:
        """A new search, to its end, and the run of its winner."""
        config = prepared.config
        path = self._path(config)
        self._refuse_taken(path)
        for note in prepared.notes:
            self.console.say(note)
        parts = self._check_search(prepared)
        with self._room(prepared, path) as share:
            run = self._create(path, prepared, parts.data)
            return self._advance_search(run, prepared, parts.data, share)

    def resume(self, name: str, given: Prepared | None) -> dict:
        """Go on with an interrupted search. given: what it is expected to be.

        Raises MismatchError where it has begun with another config, other data or other plugins."""
        run = find_any(name, self.project.runs)
        if run.is_what != "search":
            raise ConfigError(f"{run.name} is a {run.is_what}, not a search: `{run.how_to_resume}` goes on with it")
        run.refuse_alive()
        file = run.path / "tune.yaml"
        prepared = Prepared(file.read_text(), load_text(file.read_text(), str(file), self.registry).config)
        if given and (changed := differences(prepared.identity(), given.identity())):
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
            raise MismatchError(
                f"the pictures of {prepared.config.data.name} are not those that {run.name} has begun with"
            )
        with self._room(prepared, run.path) as share:
            return self._advance_search(run, prepared, data, share)

    # -- before the first trial --------------------------------------------------------------------------------------

    def _check_search(self, prepared: Prepared) -> Parts:
        if prepared.tune.searcher == "optuna":
            need_optuna()
        if prepared.config.student.prune:
            raise ConfigError(
                "student.prune: a search prunes nothing. Prune once, by `kdray train`, and search with the config of "
                "that run (`extends: runs/NAME/config.yaml`)"
            )
        return self.check(prepared.config)

    @contextlib.contextmanager
    def _room(self, prepared: Prepared, path: Path) -> Iterator[Share]:
        """Ray for the whole search, whose nodes can hold a trial and have what it needs. path: of the search."""
        refuse_vanishing(path)
        with RaySession(self.address or self.project.ray_address) as self.session:
            share = share_out_trials(prepared.tune, self.session.nodes())
            self._check_nodes(prepared.config)
            yield share

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
        with self._interruptible(run.path), self._driven(run):
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
            with swept() if prepared.tune.trial_workers > 1 else contextlib.nullcontext():
                self._search(run, prepared, search, share)
                return self._finish(run, prepared)

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
        check_accuracies(config, parts)
        for line in why_live(config, parts):
            self.console.say(line)
        shared = served(config, parts)
        if not shared:
            return {}
        cached = with_caches(config, shared)
        precompute = Precompute(
            *(self.registry, self.project, self.console, self.command, self.address), under_way=self.under_way
        )
        if reason := too_large(precompute, cached, parts, self.project.cache):
            self.console.say(reason)
            return {}
        precompute.run(cached)
        return precompute.places(cached, parts)

    # -- the trials --------------------------------------------------------------------------------------------------

    def _search(self, run: RunFolder, prepared: Prepared, search: Search, share: Share) -> None:
        from ray import tune

        from .schedulers import Scheduler
        from .stopping import fit
        from .telling import Telling

        settings, config = prepared.tune, prepared.config
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told from the trial's folder
        trainable = tune.with_resources(tune.with_parameters(trial, search=search), share.of_a_trial())
        self.console.say(
            f"search {run.path}: {settings.count} trials of {config.schedule.epochs} epochs, {share.at_once} at a "
            f"time; {settings.searcher}" + (f", {settings.stops}" if settings.stops != "none" else "")
        )
        screen = Screen(self.console, run.path, settings.count, settings.metrics)
        Telling.folder, Telling.screen = run.path, screen
        Scheduler.folder, Scheduler.settings = run.path, settings
        try:
            trials = tuner(
                trainable,
                settings,
                config.seed,
                most_epochs(config),
                run.path,
                share.at_once,
                config.scale.max_failures,
                [Telling()],
            )
            fit(trials, stopped="stopped among its trials")
        finally:
            screen.close()

    def _finish(self, run: RunFolder, prepared: Prepared) -> dict:
        """results.parquet, best.yaml, plots, the run of the winner, and what to tell of all that."""
        from ...run.search_plots import draw

        settings, trials = prepared.tune, read_trials(run.path)
        best = winner(trials, settings.metrics[0])
        if best is None:
            first = next((t.error for t in trials if t.error), "no trial has come to the end of an epoch")
            raise RunFailed(f"all {len(trials)} trials failed; the first with:\n{first}")
        write_results(trials, run.path / "results.parquet")
        file = run.path / "best.yaml"
        chosen = best_config(best, prepared.config, self.registry)
        file.write_text(heading(run, best, settings) + to_yaml(chosen))
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
            "epochs_of_full_trials": settings.count * most_epochs(prepared.config),
            "runs": [r.summary for r in runs],
        }
        write_json(run.path / "summary.json", summary)
        shutil.rmtree(run.path / STATE, ignore_errors=True)
        for each in trials:
            shutil.rmtree(Path(each.path) / "checkpoints", ignore_errors=True)
        return summary

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
