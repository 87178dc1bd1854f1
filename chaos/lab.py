"""A project for each fault, the unbroken runs that its end is held to, and commands in processes that may be hurt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import yaml

from chaos import points
from chaos.cluster import MARK as CLUSTER
from kdray.engine.checkpoint import checkpoints
from kdray.run.folder import RunFolder

ROOT = Path(__file__).parents[1]
PATIENCE = 120
"""Seconds after which a command in one process counts as hanging."""
PATIENCE_WITH_RAY = 400
"""A loaded machine needs minutes to start workers; and what only Ray's own timeouts end may take so long."""
MARK = "KDRAY_CHAOS_FOLDER"

TEACHER = {
    "name": "teacher",
    "data": {"name": "digits", "batch_size": 50, "samples": 300},
    "student": {"model": "convnet", "widths": [8, 16]},
    "losses": {"ce": {}},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"epochs": 3},
    "scale": {"num_workers": 0},
    "trackers": [],
}
ONE = {
    **TEACHER,
    "name": "one",
    "data": {"name": "digits", "batch_size": 20, "samples": 200, "augment": [{"crop": {"padding": 1}}]},
    "teacher": {"model": "convnet", "widths": [8, 16], "checkpoint": "teacher.safetensors"},
    "student": {"model": "convnet", "widths": [4, 8]},
    "losses": {
        "ce": {},
        "kd": {"temperature": 2.0},
        "crd": {"dim": 8, "weight": 0.1, "negatives": {"kind": "bank", "count": 40}},
        "sick": {},
    },
    "optimizer": {"name": "sgd", "lr": 0.05},
    "engine": {"ema": 0.9, "log_every": 1},
    "checkpoint": {"every_steps": 4},
}
STEPS = 30
CACHED = {**ONE, "teacher": {**ONE["teacher"], "cache": {"path": "caches/one"}}}
SEARCH = {
    **TEACHER,
    "name": "search",
    "data": {"name": "digits", "batch_size": 20, "samples": 100, "validation": 0.2, "last_batch": "drop"},
    "schedule": {"epochs": 60},
    "tune": {
        "space": {"optimizer.lr": {"grid": [0.01, 0.05, 0.1]}},
        "searcher": "grid",
        "scheduler": "none",
        "max_concurrent": 1,
    },
}
SPLIT = {**ONE, "scale": {"num_workers": 2, "cpus_per_worker": 1}}


class Lab:
    """A project of one fault. truth: that with the unbroken runs."""

    def __init__(self, path: Path, truth: Lab | None = None):
        self.path, self.truth, self.commands = path, truth or self, []
        if truth:
            shutil.copytree(truth.path, path, ignore=shutil.ignore_patterns("runs", "caches", "tmp", "*.log"))
        (path / "tmp").mkdir(parents=True)

    @classmethod
    def first(cls, path: Path, with_workers: bool) -> Lab:
        """The project, with a teacher; the unbroken run and cache of one process; and the run of two workers."""
        lab = cls(path)
        try:
            lab._make(with_workers)
        finally:
            lab.close()
        lab.commands = []
        return lab

    def _make(self, with_workers: bool) -> None:
        path = self.path
        shutil.copyfile(ROOT / "chaos" / "sick.py", path / "sick.py")
        (path / "kdray.toml").write_text('[paths]\nruns = "runs"\n[plugins]\nload = ["sick.py"]\n')
        configs = {"teacher": TEACHER, "one": ONE, "cached": CACHED, "split": SPLIT, "search": SEARCH}
        for name, config in configs.items():
            (path / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        self.done("train", "teacher.yaml")
        shutil.copyfile(self.run("teacher").path / "student.safetensors", path / "teacher.safetensors")
        self.done("train", "one.yaml", watched=True)
        self.training_points = points.counted(path)
        self.done("precompute", "cached.yaml", watched=True)
        self.caching_points = points.counted(path)
        self.done("train", "cached.yaml", "--name", "cached")
        if with_workers:
            self.done("train", "split.yaml", "--name", "split", started=True)
            self.done("tune", "search.yaml", "--name", "search", started=True)

    def run(self, name: str = "one") -> RunFolder:
        return RunFolder(self.path / "runs" / name)

    def order(self, do: str, step: int, rank: int = 0, **more) -> None:
        """What the plugin is to do."""
        (self.path / "order.json").write_text(json.dumps({"do": do, "step": step, "rank": rank, **more}))

    def done(self, *args: str, **how) -> str:
        """A command that must end well: what it said."""
        return self.command(*args, **how).ends(0)

    def command(self, *args: str, **how) -> Forked | Started:
        """how: `started` for a process of its own from the beginning, else see `Forked`."""
        kind = Started if how.pop("started", False) else Forked
        self.commands.append(kind(self, args, **how))
        return self.commands[-1]

    # -- how a fault must end ----------------------------------------------------------------------------------------

    def recover(self, name: str = "one", config: str = "one.yaml", **how) -> str:
        """Go on with the run, or begin it where it had not begun; it must end as the unbroken one did."""
        run, said = self.run(name), "finished"
        if not (run.path / "status.json").exists():
            shutil.rmtree(run.path, ignore_errors=True)  # nobody calls that a run: the user takes it away
            self.done("train", config, "--name", name, **how)
            said = "begun anew"
        elif not run.finished:
            kept = checkpoints(run.path / "checkpoints")
            self.done("resume", name, **how)
            said = f"resumed from {kept[-1].name}" if kept else "resumed from the start"
        self.same_run(name)
        return said

    def same_run(self, name: str = "one") -> None:
        """Bit for bit: the weights, the averaged weights, the banks, and each term of each row."""
        mine, true = self.run(name), self.truth.run(name)
        assert mine.finished, f"the run is not finished: {mine.status}"
        for file in ("student.safetensors", "best.safetensors"):
            assert (mine.path / file).read_bytes() == (true.path / file).read_bytes(), f"{file} differs"
        a, b = (checkpoints(run.path / "checkpoints")[-1] for run in (mine, true))
        assert a.name == b.name, f"the last checkpoint is {a.name}, not {b.name}"
        for file in ("student", "ema", "distillers"):
            same = (a / f"{file}.safetensors").read_bytes() == (b / f"{file}.safetensors").read_bytes()
            assert same, f"{file} differs in the last checkpoint"
        assert _story(mine) == _story(true), "metrics.jsonl tells another story"
        told = {row["path"] for row in mine.rows("checkpoint")}
        assert told >= {path.name for path in checkpoints(mine.path / "checkpoints")}, "a checkpoint has no row"

    def same_search(self, name: str = "search") -> None:
        """The same trials with the same rows and weights, and the same best config."""
        mine, true = (lab.run(name).path for lab in (self, self.truth))
        trials = [sorted(path.name for path in (folder / "trials").iterdir()) for folder in (mine, true)]
        assert trials[0] == trials[1], f"the trials are {trials[0]}, not {trials[1]}"
        for number in trials[0]:
            a, b = (RunFolder(folder / "trials" / number) for folder in (mine, true))
            assert a.finished and _story(a) == _story(b), f"trial {number} tells another story"
            weights = [(run.path / "student.safetensors").read_bytes() for run in (a, b)]
            assert weights[0] == weights[1], f"the weights of trial {number} differ"
        assert (mine / "best.yaml").read_bytes() == (true / "best.yaml").read_bytes(), "best.yaml differs"

    def cache(self) -> dict[str, bytes]:
        folder = self.path / "caches" / "one"
        return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

    def same_cache(self) -> None:
        mine, true = self.cache(), self.truth.cache()
        assert mine.keys() == true.keys(), f"files of the cache differ: {sorted(mine.keys() ^ true.keys())[:4]}"
        assert mine == true, "the bytes of the cache differ"

    def an_hour_later(self) -> None:
        """Unfinished files of writers that died are removed when they are an hour old."""
        for part in (self.path / "caches").rglob(".writing-*"):
            os.utime(part, (time.time() - 7200,) * 2)

    def clean(self) -> None:
        """No unfinished file, nothing in the folder for temporary files, and no process."""
        parts = [p for p in self.path.rglob(".*") if p.name.startswith(".writing-") or p.name == ".ray"]
        rays = ("ray", "_ray_lockfiles")  # the logs of its sessions, and empty files that Ray Tune locks
        temporary = [p for p in (self.path / "tmp").iterdir() if p.name not in rays]
        left = [str(p.relative_to(self.path)) for p in [*parts, *temporary]]
        assert not left, f"left behind: {left}"
        self.clean_processes()

    def clean_processes(self) -> None:
        """None is left after a minute: when a driver is killed, some of Ray's own need a while to notice."""
        until = time.monotonic() + 60
        while alive := [text for command in self.commands for text in command.left()]:
            assert time.monotonic() < until, f"processes are left: {alive}"
            time.sleep(0.2)

    def close(self) -> None:
        """End what a failed fault has left."""
        for command in self.commands:
            command.kill()


class Command:
    """A kdray command in a process and a session of its own, whose output goes to a file."""

    patience = PATIENCE

    def __init__(self, lab: Lab, args: tuple[str, ...]):
        self.lab, self.args, self.code = lab, args, None
        self.file = lab.path / f"{len(lab.commands)}.log"
        self.env = {MARK: str(lab.path), "TMPDIR": str(lab.path / "tmp"), "OMP_NUM_THREADS": "1"}

    @property
    def text(self) -> str:
        return self.file.read_text(errors="replace")

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, until: Callable[[], bool] = lambda: False) -> int | None:
        """Its exit code, minus the signal where one killed it; None where `until` came true before."""
        end = time.monotonic() + self.patience
        while self.poll() is None and not until():
            assert time.monotonic() < end, f"kdray {' '.join(self.args)} hangs: {self.text[-1500:]}"
            time.sleep(0.005)
        return self.code

    def ends(self, *codes: int, saying: str = "") -> str:
        """It must end with one of these codes; where it is refused or fails, with a message and no traceback."""
        code, text = self.wait(), self.text
        told = f"kdray {' '.join(self.args)} ended with {code}, not {codes}: {text[-1500:]}"
        assert code in codes, told
        assert "Traceback (most recent call last)" not in text, told
        assert code in (0, 130) or code < 0 or "error: " in text, told
        assert saying in text or code in (0, -9), f"no {saying!r} in {text[-1500:]}"
        return text

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
        if number == signal.SIGKILL:
            for pid in _processes(self.belongs):
                os.kill(pid, signal.SIGKILL)
            self.wait()

    def left(self) -> list[str]:
        return [_words(pid) for pid in _processes(self.belongs)]


class Forked(Command):
    """Forked from this process, which has all modules loaded: no seconds for starting. Not with Ray.

    watched: count its points; at, do, within: see `points.watch`. first: called in the new process before all else."""

    def __init__(self, lab: Lab, args, watched: bool = False, first: Callable[[], None] | None = None, **point):
        super().__init__(lab, args)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            out = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            os.environ.update(self.env)
            os.chdir(lab.path)
            sys.argv = ["kdray", *args]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if first:
                first()
            if watched or point:
                points.watch(lab.path, **point)
            code = _main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def belongs(self, pid: int) -> bool:
        return os.getsid(pid) == self.pid


class Started(Command):
    """`python -m kdray`, and all that it starts, marked by their environment."""

    patience = PATIENCE_WITH_RAY

    def __init__(self, lab: Lab, args, env: dict[str, str] | None = None):
        super().__init__(lab, args)
        path = os.pathsep.join([str(ROOT), *sys.path])
        with open(self.file, "w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kdray", *args],
                cwd=lab.path,
                env={**os.environ, **self.env, "PYTHONPATH": path, **(env or {})},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def poll(self) -> int | None:
        self.code = self.process.poll()
        return self.code

    def belongs(self, pid: int) -> bool:
        env = Path(f"/proc/{pid}/environ").read_bytes()
        return f"{MARK}={self.lab.path}".encode() in env.split(b"\0") and CLUSTER.encode() not in env


def _main() -> int:
    from kdray.cli.main import main

    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _story(run: RunFolder) -> list:
    rows = [row for row in run.rows() if row["kind"] in ("teacher", "step", "epoch")]
    return [(row["kind"], row["step"], row.get("terms"), row.get("test")) for row in rows]


def _processes(chosen: Callable[[int], bool]) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not dead and int(folder.name) != os.getpid() and chosen(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def _words(pid: int) -> str:
    try:
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode().strip()[:100]}"
    except OSError:
        return str(pid)
