"""What happens in one trial of `kdray tune`: an ordinary run in a folder of its own, which looks at no test set and
tells Ray Tune of each epoch.

What a trial needs to go on after an interruption is in its folder, as in that of any run. Only population-based
training hands checkpoints to Ray Tune: there a trial goes on from another's.
"""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...config.dump import write
from ...config.load import digest, load_text, to_yaml
from ...config.schema import CacheConfig, Config
from ...config.space import decode, put
from ...config.tune import TuneConfig
from ...config.yaml import read
from ...engine import checkpoint
from ...engine.context import Context
from ...engine.train import Job
from ...errors import ConfigError, RunFailed
from ...registry import Registry
from ...run.folder import RunFolder, read_json, write_json
from ...run.metrics import FileLog
from ...run.trials import numbers
from ...run.watch import Watch
from ...teacher.setup import Place
from ..arithmetic import decided
from ..code import Code
from ..experiment import device_here
from ..ray_train import run_on_ray
from ..session import RaySession
from ..worker import Assignment, train_here


@dataclass(frozen=True)
class Search:
    """What the driver sends to each trial. text: the config with its section `tune`, as in tune.yaml."""

    text: str
    folder: Path
    command: str
    data_root: Path
    data: str
    """Fingerprint."""
    checkpoints: dict[str, str]
    """The file of its weights by teacher."""
    caches: dict[str, Place]
    code: Code
    cpus: float = 1.0
    """Of a worker."""
    gpus: float = 0.0

    @property
    def tune(self) -> TuneConfig:
        return TuneConfig.model_validate(read(self.text, "tune.yaml").value["tune"])

    def config(self, drawn: dict, name: str, registry: Registry) -> Config:
        """That of a trial with these values, `drawn` by the searcher."""
        given, tune = dict(read(self.text, "tune.yaml").value), self.tune
        del given["tune"]
        found = load_text(write(put(given, decode(tune, drawn))), f"trial {name}", registry).config
        found = placed(found, tune, self.cpus, self.gpus, set(self.caches))
        changed = {"baseline": False, "trackers": []}
        if tune.searcher == "pbt":  # whoever is taken over from has a checkpoint of the very epoch
            changed["checkpoint"] = found.checkpoint.model_copy(update={"every_epochs": 1})
        return found.model_copy(update=changed)


def placed(config: Config, tune: TuneConfig, cpus: float, gpus: float, cached: set[str]) -> Config:
    """`config` with the workers of a trial and the answers that all trials share. cached: teachers with a cache."""
    scale = config.scale.model_copy(
        update={"num_workers": tune.trial_workers, "cpus_per_worker": cpus, "use_gpu": gpus > 0}
    )
    teachers = {}
    for name, section in config.all_teachers.items():
        cache = section.cache or CacheConfig()
        cache = cache.model_copy(update={"fallback": "live", "fill": False}) if name in cached else None
        teachers[name] = section.model_copy(update={"cache": cache, "placement": None})
    changed = {"teacher": teachers["teacher"]} if config.teacher else {"teachers": teachers}
    return config.model_copy(update={"scale": scale, "tune": None, **changed})


def trial(drawn: dict, search: Search) -> None:
    """The function that Ray Tune runs, in a process that may have run others."""
    import torch
    from ray import tune

    name = tune.get_context().get_trial_name()
    run, settings = RunFolder(search.folder / "trials" / name), search.tune
    values = decode(settings, drawn)
    if run.status["state"] == "failed" and values_of(run) == values:
        raise RunFailed(run.status["error"])  # Ray Tune was interrupted before it wrote that down
    if run.finished and values_of(run) == values:  # Ray Tune was interrupted before it wrote that down
        return _Report(run, run.rows("epoch")[-1]["epoch"], settings.searcher == "pbt").end()
    try:
        registry = search.code.load()
        config = decided(search.config(drawn, name, registry))
        _begin(run, config, search, registry, values, tune.get_checkpoint())
        torch.set_num_threads(max(1, int(search.cpus)))
        job = Job(config, run.path, search.data_root, search.checkpoints, search.caches, data=search.data, test=False)
        report = _Report(run, config.schedule.epochs, settings.searcher == "pbt")
        report.again()
        if config.scale.num_workers == 1:
            _train_here(job, registry, report)
        else:
            _train_on_ray(job, search, report)
    except Exception as error:
        if run.path.exists():
            run.set_status("failed", error=str(error) or type(error).__name__)
        raise
    run.set_status("finished")
    report.end()


def _begin(run: RunFolder, config: Config, search: Search, registry: Registry, values: dict, found) -> None:
    """A folder for a new trial; of one that goes on, what is in it, or the checkpoint `found` of another trial.

    After a killed driver a trial may get other values than its number had before: then that was another trial."""
    had = values_of(run)
    is_other = had is not None and had != values
    if had is None or (is_other and not found):
        shutil.rmtree(run.path, ignore_errors=True)
        RunFolder.create(
            run.path,
            config_text=to_yaml(config),
            command=search.command,
            plugins=registry.fingerprint(),
            data=search.data,
            recipe=digest(config),
        )
        write_json(run.path / "values.json", {"values": values, "history": [{"epoch": 0, "values": values}]})
    if found and (had is None or is_other or _is_from_another(found.path, run)):
        epoch = _adopt(Path(found.path), run, config, values)
        history = read_json(run.path / "values.json")["history"]
        now = {"epoch": epoch, "values": values, "from": Path(found.path).parent.name}
        write_json(run.path / "values.json", {"values": values, "history": [*history, now]})
        (run.path / ".adopted").write_text(found.path)
    shutil.rmtree(run.path / "failures", ignore_errors=True)
    run.set_status("running")


def values_of(run: RunFolder) -> dict | None:
    """Those that the folder's trial has; None where it was not begun."""
    return (read_json(run.path / "values.json") or {}).get("values")


def saved_epochs(run: RunFolder) -> list[dict]:
    """The rows of the epochs that a trial which goes on does not train again; the last of them it tells again."""
    newest = checkpoint.checkpoints(run.path / "checkpoints")
    step = json.loads((newest[-1] / "state.json").read_text())["step"] if newest else -1
    return [row for row in run.rows("epoch") if row["step"] <= step]


def _is_from_another(path: str, run: RunFolder) -> bool:
    """Whether Ray Tune hands over the checkpoint of another trial, and it has not been taken over already."""
    marker = run.path / ".adopted"
    taken = marker.read_text() if marker.exists() else None
    return Path(path).parent.name != run.name and path != taken


def _adopt(source: Path, run: RunFolder, config: Config, values: dict) -> int:
    """Go on from another trial's checkpoint, with the values of this config. Returns its epoch."""
    changed = {path.rpartition(".")[2]: value for path, value in values.items() if path.startswith("optimizer.")}

    def change(optimizer: dict) -> None:
        for group in optimizer.get("param_groups", ()):
            if unknown := changed.keys() - group.keys():
                raise ConfigError(
                    f"optimizer.{unknown.pop()} cannot change in a run that has begun: take it out of the space"
                )
            group.update(changed)

    epoch = checkpoint.take_over(source, run.path, digest(config), change)
    (run.path / "config.yaml").write_text(to_yaml(config))
    return epoch


class _Report:
    """Tells Ray Tune of epochs; of the last of them when all is written down: a scheduler may end the trial there.
    shares: with the checkpoint of each."""

    def __init__(self, run: RunFolder, epochs: int, shares: bool):
        self.run, self.epochs, self.shares, self.epoch = run, epochs, shares, None

    def row(self, row: dict) -> None:
        """Leaves the trial (SystemExit) where Ray Tune ends it or interrupts it."""
        if row["kind"] == "epoch":
            self.epoch = row
            if not self.shares:
                self._tell(row)
        elif row["kind"] == "checkpoint" and self.shares and self.epoch and self.epoch["step"] == row["step"]:
            self._tell(self.epoch, self.run.path / "checkpoints" / row["path"])

    def again(self) -> None:
        """The last epoch of a trial that goes on: Ray Tune may not have written down that it was told."""
        rows = saved_epochs(self.run)
        if rows and not (self.run.path / ".adopted").exists():
            saved = self.run.path / "checkpoints" / checkpoint.name_of(rows[-1]["step"])
            self._tell(rows[-1], saved if self.shares and saved.exists() else None)

    def end(self) -> None:
        self._report(self.run.rows("epoch")[-1], None)

    def _tell(self, row: dict, saved: Path | None = None) -> None:
        if row["epoch"] < self.epochs:
            self._report(row, saved)

    def _report(self, row: dict, saved: Path | None) -> None:
        from ray import tune

        told = {"epoch": row["epoch"], **numbers(row, self.run.path / checkpoint.BEST)}
        tune.report(told, checkpoint=tune.Checkpoint.from_directory(str(saved)) if saved else None)


class _TrialLog(FileLog):
    def __init__(self, folder: Path, token: str, tell: Callable[[dict], None]):
        super().__init__(folder, token)
        self.tell = tell

    def row(self, row: dict) -> None:
        super().row(row)
        self.tell(row)


def _train_here(job: Job, registry: Registry, report: _Report) -> None:
    log = _TrialLog(job.folder, report.run.new_token(), report.row)
    train_here(job, registry, Context(device=device_here(job.config)), log)


def _train_on_ray(job: Job, search: Search, report: _Report) -> None:
    """Workers of its own: a Ray Train run, which ends with this process."""
    scale = job.config.scale
    assignment = Assignment(job, search.code, report.run.new_token(), threads=max(1, int(search.cpus)))
    rows: queue.Queue[dict | BaseException | None] = queue.Queue()

    def fit(session: RaySession) -> None:
        try:
            run_on_ray(session, assignment, scale.num_workers, search.cpus, search.gpus > 0, scale.max_failures)
            rows.put(None)
        except BaseException as error:
            rows.put(error)

    with RaySession() as session:
        with Watch(job.folder, rows.put, lambda now: None):
            thread = threading.Thread(target=fit, args=[session], name="kdray-trial", daemon=True)
            thread.start()
            while (row := rows.get()) is not None:
                if isinstance(row, BaseException):
                    raise row
                report.row(row)
        while not rows.empty():  # what came between the watch's last look and the end
            report.row(rows.get())
