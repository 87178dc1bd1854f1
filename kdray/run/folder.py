"""The folder of a run: everything that is needed to understand it, repeat it and go on with it.

config.yaml        the resolved config, valid as input         metrics.jsonl    what happened, a JSON object a line
command.txt        the command that started it                 tensorboard/     the same as curves
environment.json   versions, plugins, hardware                 checkpoints/     for resuming
data.json          fingerprint of the data, digest of the recipe
status.json        running, finished or failed                 student.safetensors, best.safetensors
summary.json       the results                                 MODEL_CARD.md
"""

from __future__ import annotations

import glob
import json
import os
import platform
import re
import shutil
import socket
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel

from ..errors import ConfigError, did_you_mean
from .forms import DataFile

PACKAGES = ("kdray", "ray", "torch", "torchvision", "numpy", "pluggy", "pydantic", "safetensors")


class RunFolder:
    """An existing run. `RunFolder.create` makes a new one."""

    def __init__(self, path: Path):
        self.path = Path(path)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        config_text: str,
        command: str,
        plugins: list[dict],
        data: str,
        recipe: str,
        needed_bytes: int = 0,
    ) -> RunFolder:
        """data: their fingerprint. recipe: the config's digest.

        Raises ConfigError, and leaves nothing behind, when the name is taken or the folder cannot hold the run."""
        refuse_taken(path)
        missing = [p for p in (path, *path.parents) if not p.exists()]
        try:
            path.mkdir(parents=True)
            run = cls(path)
            free = shutil.disk_usage(path).free
            if free < needed_bytes:
                raise OSError(f"{free / 1e6:,.0f} MB are free, and checkpoints need about {needed_bytes / 1e6:,.0f} MB")
            (path / "config.yaml").write_text(config_text)
            (path / "command.txt").write_text(command + "\n")
            (path / "environment.json").write_text(json.dumps(environment(plugins), indent=2) + "\n")
            write_json(path / "data.json", {"fingerprint": data, "recipe": recipe})
            run.set_status("created")
        except OSError as error:
            for folder in missing:  # the innermost first
                shutil.rmtree(folder, ignore_errors=True)
            raise ConfigError(
                f"the run folder {path} cannot be used: {error.strerror or error}. "
                "Choose another with run.dir=…, or kdray.toml's [paths] runs"
            ) from error
        return run

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def exists(self) -> bool:
        """Whether there is a run, a search or a table."""
        return (self.path / "status.json").exists() or self.is_what != "run"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def is_what(self) -> str:
        """run, or what has runs of its own: search (`kdray tune`), table (`kdray reproduce`)."""
        kinds = {"tune.yaml": "search", "table.yaml": "table"}
        return next((kind for file, kind in kinds.items() if (self.path / file).exists()), "run")

    @property
    def how_to_resume(self) -> str:
        """The command that goes on with it."""
        match self.is_what:
            case "search":
                return f"kdray tune --resume {self.name}"
            case "table":
                return (self.path / "command.txt").read_text().strip()  # given again, it does what is left
            case _:
                return f"kdray resume {self.name}"

    @property
    def status(self) -> dict:
        found = read_json(self.path / "status.json") or {}
        whole = isinstance(found.get("state"), str)
        if found.get("state") == "running":
            whole = isinstance(found.get("host"), str) and isinstance(found.get("pid"), int)
        return found if whole else {"state": "unknown"}

    @property
    def finished(self) -> bool:
        return self.status["state"] == "finished"

    @property
    def data(self) -> str:
        """Fingerprint of the data that the run began with."""
        return (read_json(self.path / "data.json", DataFile) or {}).get("fingerprint", "")

    @property
    def is_alive(self) -> bool:
        """Whether another process of this machine drives the run."""
        return self._driven_here_by_another and _lives(self.status["pid"], self.status.get("born"))

    def refuse_alive(self) -> None:
        """Raises ConfigError where another process of this machine drives it."""
        if self.is_alive:
            raise ConfigError(f"{self.name} is running just now, as process {self.status['pid']} of this machine")

    @property
    def state(self) -> str:
        """That of status.json; "died" where it says running and its process on this machine is gone."""
        return "died" if self._driven_here_by_another and not self.is_alive else self.status["state"]

    @property
    def _driven_here_by_another(self) -> bool:
        status = self.status
        return status["state"] == "running" and status["host"] == socket.gethostname() and status["pid"] != os.getpid()

    @property
    def summary(self) -> dict | None:
        return read_json(self.path / "summary.json")

    def weights(self, best: bool = False) -> Path:
        """The student's file, of the last epoch or of the best one. Raises ConfigError while there is none."""
        file = self.path / ("best.safetensors" if best else "student.safetensors")
        if not file.exists():
            raise ConfigError(
                f"{self.name} has no {file.name} yet (its state: {self.status['state']}): "
                f"`{self.how_to_resume}` goes on with it"
            )
        return file

    def set_status(self, state: str, **more) -> None:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
        now = {"state": state, **who, "time": time.time(), **more}
        write_json(self.path / "status.json", now)

    def sweep(self) -> None:
        """Remove what killed processes have left unfinished."""
        for part in (*self.path.glob(".writing-*"), *self.path.glob("checkpoints/.writing-*"), self.path / ".ray"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)

    def new_token(self) -> str:
        """A fresh mark in the folder, by which a worker on another node can tell that it sees the same folder."""
        token = uuid.uuid4().hex
        (self.path / ".token").write_text(token)
        return token

    def rows(self, kind: str | None = None) -> list[dict]:
        from .metrics import read_rows

        return [row for row in read_rows(self.path / "metrics.jsonl") if kind in (None, row.get("kind"))]


def _born(pid: int) -> int | None:
    """When a process of Linux began, in ticks since the machine did; None where it is gone, or this is not Linux."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(rest[18])  # starttime, field 22 of proc(5)


def _lives(pid: int, born: int | None) -> bool:
    """Whether that process does, rather than another one of its number: in a container that is started again they are
    the same few."""
    if born is not None:
        return _born(pid) == born
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True


def refuse_taken(path: Path) -> None:
    """Raises ConfigError when there is a run, or anything else, at `path`."""
    if not os.path.lexists(path):
        return
    run, what, resume = RunFolder(path), f"a run named '{path.name}' exists already at {path}", ""
    if run.state == "unknown":
        what = f"{path} exists already, and is no run"
    elif run.is_alive:
        what += ", and is running just now"
    elif run.finished:
        pass
    elif any(path.glob("checkpoints/step-*")):
        resume = f"go on with it by `kdray resume {path.name}`, or "
    else:
        what += f" ({run.state}, without a checkpoint)"
        resume = f"begin it again with the config it has there by `kdray resume {path.name}`, remove the folder, or "
    raise ConfigError(f"{what}: {resume}choose another name with --name")


def finished_run(folder: Path, recipe: str, data: str) -> RunFolder | None:
    """A finished run in `folder` of this recipe (the digest of a config) on these data (their fingerprint), whatever
    its name."""
    for file in sorted(folder.glob("*/data.json")):
        run = RunFolder(file.parent)
        same = read_json(file) == {"fingerprint": data, "recipe": recipe}
        if same and run.finished and (run.path / "student.safetensors").exists():
            return run
    return None


def list_runs(folder: Path) -> list[dict]:
    """Every run, search and table in `folder`, the newest last.

    name, path, kind (see `RunFolder.is_what`), state, started, last and best accuracy where there is one (of a search,
    those of its winner's first run); parts: how many trials a search has begun, or runs a table, else None; host: where
    it was driven last; progress: what progress.json says, or None; heard: when it last gave a sign; error: the first
    line of what it failed of, or None."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        if (path / "status.json").exists():
            run = RunFolder(path)
            summary, status, state = run.summary or {}, run.status, run.state
            inside = {"search": "trials/*/values.json", "table": "*/*/status.json"}.get(run.is_what)
            if isinstance(of_winner := summary.get("runs"), list) and of_winner and isinstance(of_winner[0], dict):
                summary = of_winner[0]
            last, best = (part if isinstance(part := summary.get(key), dict) else {} for key in ("last", "best"))
            error = str(status.get("error") or "").strip() if state == "failed" else ""
            found.append(
                {
                    "name": run.name,
                    "path": str(path.resolve()),
                    "kind": run.is_what,
                    "state": state,
                    "started": _mtime(path / "command.txt"),
                    "last": last.get("top1"),
                    "best": best.get("top1"),
                    "parts": len(list(path.glob(inside))) if inside else None,
                    "host": status.get("host"),
                    "progress": read_json(path / "progress.json"),
                    "heard": max(_mtime(path / file) for file in ("status.json", "progress.json")),
                    "error": error.splitlines()[0] if error else None,
                }
            )
    return sorted(found, key=lambda run: run["started"])


def _mtime(file: Path) -> float:
    """Seconds since the epoch; 0 where there is no such file."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def find_any(name: str, folder: Path) -> RunFolder:
    """A run, a search or a table by its name in `folder`, or by its path. Raises ConfigError where there is none."""
    for path in (Path(name), folder / name):
        if RunFolder(path).exists:
            return RunFolder(path.resolve())
    known = [run["name"] for run in list_runs(folder)]
    raise ConfigError(f"no run '{name}' in {folder}.{did_you_mean(name, known)} `kdray list runs` shows them all.")


def find_run(name: str, folder: Path) -> RunFolder:
    """As `find_any`, and raises ConfigError for a search or a table, too."""
    found = find_any(name, folder)
    if found.is_what != "run":
        raise ConfigError(f"{found.name} is a {found.is_what}, not a run: `{found.how_to_resume}` goes on with it")
    return found


def seed_name(name: str, seed: int) -> str:
    """Of the run of one seed, where `train --seeds` makes several."""
    return f"{name}-seed{seed}"


def without_seed(name: str) -> str:
    """The name that was given, of a run's that `seed_name` has made."""
    return re.sub(r"-seed-?\d+$", "", name)


def find_seeds(name: str, folder: Path) -> list[RunFolder]:
    """As `find_run`, and where there is no run of that name, those that `train --seeds` has made of it, by seed."""
    for path in (Path(name), folder / name):
        if RunFolder(path).exists:
            break
        parts = path.parent.glob(f"{glob.escape(path.name)}-seed*") if path.parent.is_dir() and path.name else ()
        seeds = [part for part in parts if without_seed(part.name) == path.name and RunFolder(part).exists]
        if seeds:
            by_seed = sorted(seeds, key=lambda part: int(part.name.removeprefix(f"{path.name}-seed")))
            return [find_run(str(part), folder) for part in by_seed]
    return [find_run(name, folder)]


def environment(plugins: list[dict]) -> dict:
    """What the run ran on."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "packages": packages,
        "plugins": plugins,
    }


def read_json(path: Path, form: type[BaseModel] | None = None) -> dict | None:
    """None where there is no file, or a damaged one: no mapping, or not of the form."""
    try:
        found = json.loads(path.read_text())
        if form:
            form.model_validate_json(json.dumps(found))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: dict) -> None:
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """A reader sees the old text or the new one, never a part."""
    part = path.with_name(f".writing-{path.name}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
