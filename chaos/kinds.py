"""The faults of runs and caches in one process. Each takes a Lab and a source of chance, raises AssertionError where
kdray does not keep its word, and returns what happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from random import Random

from chaos.lab import STEPS, Lab
from kdray.engine.checkpoint import checkpoints


def _before_end(chance: Random) -> int:
    return chance.randrange(STEPS)


# -- the process dies ------------------------------------------------------------------------------------------------


def kill_at_a_file(lab: Lab, chance: Random) -> str:
    """SIGKILL at a random operation on a file of the run."""
    at = chance.randint(1, lab.truth.training_points)
    lab.command("train", "one.yaml", at=at, do="kill").ends(-9, 0)
    return f"operation {at} of {lab.truth.training_points}, {lab.recover()}"


def kill_at_a_step(lab: Lab, chance: Random) -> str:
    """SIGKILL inside a random step, and once more after the resumption."""
    first = _before_end(chance)
    lab.order("kill", first, signal=signal.SIGKILL)
    lab.command("train", "one.yaml").ends(-9)
    second = chance.randint(first, STEPS - 1)
    lab.order("kill", second, signal=signal.SIGKILL)
    lab.command("resume", "one").ends(-9)
    return f"steps {first} and {second}, {lab.recover()}"


def kill_at_any_time(lab: Lab, chance: Random) -> str:
    """SIGKILL from outside, at no particular place."""
    command, step, more = lab.command("train", "one.yaml"), _before_end(chance), chance.random() * 0.05
    command.wait(lambda: _steps(lab) >= step)
    time.sleep(more)
    command.kill()
    command.ends(-9, 0)
    return f"after step {step} + {more * 1000:.0f} ms, {lab.recover()}"


def sigterm(lab: Lab, chance: Random) -> str:
    """SIGTERM inside a random step."""
    step = _before_end(chance)
    lab.order("kill", step, signal=signal.SIGTERM)
    lab.command("train", "one.yaml").ends(130, 0, saying="kdray resume one")
    return f"step {step}, {lab.recover()}"


def _steps(lab: Lab) -> int:
    try:
        return (lab.run().path / "metrics.jsonl").read_bytes().count(b'"step"')
    except OSError:
        return 0


# -- the disk is full ------------------------------------------------------------------------------------------------


def full_disk_training(lab: Lab, chance: Random) -> str:
    """A file system of 2 MB that is full from a random step on but for some KiB; then there is room again."""
    step, free = _before_end(chance), chance.randint(0, 60)
    with _Disk(lab.path / "runs") as disk:
        lab.order("fill", step, folder="runs", free=free << 10)
        code = lab.command("train", "one.yaml").wait()
        lab.commands[-1].ends(0, 1)
        disk.free()
        said = lab.recover()
        shutil.copytree(lab.path / "runs", lab.path / "kept")
    shutil.rmtree(lab.path / "runs")
    os.rename(lab.path / "kept", lab.path / "runs")
    return f"{free} KiB free from step {step} on, exit {code}, {said}"


def full_disk_at_a_file(lab: Lab, chance: Random) -> str:
    """From a random operation on a file on, every one that writes fails as on a full disk (injected)."""
    at = chance.randint(1, lab.truth.training_points)
    code = lab.command("train", "one.yaml", at=at, do="full").wait()
    lab.commands[-1].ends(0, 1, 2)
    return f"operation {at}, exit {code}, {lab.recover()}"


class _Disk:
    """A small file system of its own at `folder`; where nothing may be mounted, the fault is skipped."""

    SIZE = 2 << 20

    def __init__(self, folder: Path):
        self.folder, self.ballast = folder, folder / "ballast"

    def __enter__(self) -> _Disk:
        self.folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.SIZE}", "tmpfs", str(self.folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            raise Skipped("needs the right to mount a file system")
        return self

    def leave(self, free: int) -> None:
        self.ballast.write_bytes(bytes(self.SIZE - free))

    def free(self) -> None:
        self.ballast.unlink()

    def __exit__(self, *_) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class Skipped(Exception):
    """This machine does not allow the fault."""


# -- storage and files -----------------------------------------------------------------------------------------------


def runs_vanish(lab: Lab, chance: Random) -> str:
    """The folder of all runs goes away inside a step and comes back."""
    step, seconds = _before_end(chance), chance.choice([0.05, 0.3, 1.0])
    lab.order("vanish", step, folder="runs")
    command = lab.command("train", "one.yaml")
    _away_and_back(lab, command, "runs", seconds)
    command.ends(0, 1, 2)
    code = command.code
    return f"step {step}, for {seconds} s, exit {code}, {lab.recover()}"


def damaged_checkpoint(lab: Lab, chance: Random) -> str:
    """A file of the newest checkpoint is cut or has a flipped bit after the run was killed."""
    lab.order("kill", chance.randint(9, STEPS - 1), signal=signal.SIGKILL)
    lab.command("train", "one.yaml").ends(-9)
    newest = checkpoints(lab.run().path / "checkpoints")[-1]
    file = chance.choice(sorted(newest.iterdir()))
    what = _damage(file, chance)
    lab.command("resume", "one").ends(0, 4, saying=file.name)
    if not lab.run().finished:  # no older one was whole: what is damaged is to be removed
        shutil.rmtree(newest)
    return f"{newest.name}/{file.name} {what}, {lab.recover()}"


def damaged_shard(lab: Lab, chance: Random) -> str:
    """A file of the cache is cut or has a flipped bit: the run is refused, the repair gives the same bytes again."""
    _have_cache(lab)
    file = chance.choice(sorted(lab.path.glob("caches/one/*/*.safetensors")))
    what = _damage(file, chance)
    lab.command("train", "cached.yaml", "--name", "cached").ends(4, saying=file.name)
    assert not lab.run("cached").path.exists()
    lab.command("cache", "verify", "caches/one").ends(4)
    lab.command("cache", "verify", "caches/one", "--repair").ends(0, 4)
    lab.done("precompute", "cached.yaml")
    lab.same_cache()
    lab.recover("cached", "cached.yaml")
    return f"{file.name} {what}"


def damaged_manifest(lab: Lab, chance: Random) -> str:
    """So is the manifest of the cache."""
    _have_cache(lab)
    file = lab.path / "caches" / "one" / "manifest.json"
    what = _damage(file, chance)
    lab.command("train", "cached.yaml", "--name", "cached").ends(4, saying=file.name)
    shutil.rmtree(file.parent)
    lab.done("precompute", "cached.yaml")
    lab.same_cache()
    return f"manifest {what}"


def _damage(file: Path, chance: Random) -> str:
    data = bytearray(file.read_bytes())
    at = chance.randrange(len(data))
    if chance.random() < 0.4:
        file.write_bytes(data[:at])
        return f"cut at byte {at}"
    data[at] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return f"flipped in byte {at}"


def _have_cache(lab: Lab) -> None:
    shutil.copytree(lab.truth.path / "caches", lab.path / "caches")


def _away_and_back(lab: Lab, command, folder: str, seconds: float) -> None:
    """Bring the folder back so many seconds after the command has lost it; what took its place meanwhile goes."""
    command.wait((lab.path / "gone").exists)
    time.sleep(seconds)
    shutil.rmtree(lab.path / folder, ignore_errors=True)
    os.rename(lab.path / "gone", lab.path / folder)


# -- caches ----------------------------------------------------------------------------------------------------------


def kill_caching(lab: Lab, chance: Random) -> str:
    """SIGKILL at a random operation on a file of the cache, twice."""
    places = [chance.randint(1, lab.truth.caching_points) for _ in range(2)]
    for at in places:
        lab.command("precompute", "cached.yaml", at=at, do="kill").ends(-9, 0)
    return f"operations {places}, {_finish_cache(lab)}"


def full_disk_caching(lab: Lab, chance: Random) -> str:
    """A file system of 2 MB with too little room for the cache."""
    (lab.path / "caches").mkdir()
    with _Disk(lab.path / "caches" / "one") as disk:
        size = sum(map(len, lab.truth.cache().values()))
        free = chance.randint(1, size >> 10)
        disk.leave(free << 10)
        code = lab.command("precompute", "cached.yaml").wait()
        lab.commands[-1].ends(0, 1)
        disk.free()
        said = _finish_cache(lab)
    return f"{free} KiB free, exit {code}, {said}"


def full_disk_caching_at_a_file(lab: Lab, chance: Random) -> str:
    """From a random operation on, every one that writes fails as on a full disk (injected)."""
    at = chance.randint(1, lab.truth.caching_points)
    code = lab.command("precompute", "cached.yaml", at=at, do="full").wait()
    lab.commands[-1].ends(0, 1, 2)
    return f"operation {at}, exit {code}, {_finish_cache(lab)}"


def cache_vanishes(lab: Lab, chance: Random) -> str:
    """The cache goes away inside a step of a run that reads it, and comes back."""
    _have_cache(lab)
    step, seconds = _before_end(chance), chance.choice([0.05, 0.3, 1.0])
    lab.order("vanish", step, folder="caches")
    command = lab.command("train", "cached.yaml", "--name", "cached")
    _away_and_back(lab, command, "caches", seconds)
    command.ends(0, 1, 4)
    code = command.code
    said = lab.recover("cached", "cached.yaml")
    lab.same_cache()
    return f"step {step}, for {seconds} s, exit {code}, {said}"


def _finish_cache(lab: Lab) -> str:
    lab.an_hour_later()
    there = len(lab.cache()) if (lab.path / "caches" / "one").exists() else 0
    lab.done("precompute", "cached.yaml")
    lab.same_cache()
    return f"gone on from {there} files"


# -- plugins and numbers ---------------------------------------------------------------------------------------------


def nan_loss(lab: Lab, chance: Random) -> str:
    """A loss is no number at one step: the message names the step, the term and samples; nothing is spoiled."""
    step = _before_end(chance)
    lab.order("nan", step)
    text = lab.command("train", "one.yaml").ends(1, saying=f"at step {step}")
    assert "sick" in text and "samples" in text, text
    return f"step {step}, {lab.recover()}"


def plugin_raises(lab: Lab, chance: Random) -> str:
    """An exception of a loss at one step."""
    step = _before_end(chance)
    lab.order("raise", step)
    lab.command("train", "one.yaml").ends(3, saying=f"loss 'sick' (Sick) failed at step {step}")
    return f"step {step}, {lab.recover()}"


def plugin_of_a_wrong_shape(lab: Lab, chance: Random) -> str:
    """A loss returns a term for each row at one step."""
    step = _before_end(chance)
    lab.order("shape", step)
    lab.command("train", "one.yaml").ends(3, saying="loss 'sick'")
    return f"step {step}, {lab.recover()}"


def clock(lab: Lab, chance: Random) -> str:
    """time.time jumps by up to ten years, back or forth, inside a step; then the run is killed and resumed."""
    step, seconds = chance.randrange(STEPS - 6), chance.uniform(-3e8, 3e8)
    lab.order("clock", step, seconds=seconds)
    command = lab.command("train", "one.yaml")
    command.wait(lambda: _steps(lab) > step + 3)
    command.kill()
    return f"step {step}, {seconds / 86400:+.0f} days, {lab.recover()}"


def other_seeds(lab: Lab, chance: Random) -> str:
    """Python's and torch's own generators begin elsewhere, and are seeded anew inside a step."""
    seed, step = chance.randrange(2**31), _before_end(chance)
    lab.order("seeds", step, seed=seed)

    def reseed():
        import numpy
        import torch

        random.seed(seed), numpy.random.seed(seed), torch.manual_seed(seed)

    lab.done("train", "one.yaml", first=reseed)
    lab.same_run()
    return f"seed {seed}, again at step {step}"


def other_hashes(lab: Lab, chance: Random) -> str:
    """Another PYTHONHASHSEED, so another order of every set."""
    seed = str(chance.randrange(1, 2**32))
    lab.done("train", "one.yaml", started=True, env={"PYTHONHASHSEED": seed})
    lab.same_run()
    return f"PYTHONHASHSEED={seed}"


# -- company ---------------------------------------------------------------------------------------------------------


def two_of_one_name(lab: Lab, chance: Random) -> str:
    """Two commands begin a run of one name at once: one trains, the other is refused and harms nothing."""
    first = lab.command("train", "one.yaml")
    time.sleep(chance.random() * 0.5)
    second = lab.command("train", "one.yaml")
    codes = sorted([first.wait(), second.wait()])
    assert codes == [0, 2], f"exits {codes}: {first.text[-800:]}\n{second.text[-800:]}"
    loser = first if first.code else second
    loser.ends(2, saying="exists already")
    lab.same_run()
    return "the first one trained" if loser is second else "the second one trained"


def two_resume_at_once(lab: Lab, chance: Random) -> str:
    """Two commands resume one run at once."""
    lab.order("kill", chance.randint(5, STEPS - 3), signal=signal.SIGKILL)
    lab.command("train", "one.yaml").ends(-9)
    first = lab.command("resume", "one")
    time.sleep(chance.random() * 0.5)
    second = lab.command("resume", "one")
    first.ends(0, 1, 2)
    second.ends(0, 1, 2)
    return f"exits {first.code} and {second.code}, {lab.recover()}"


KINDS = {
    "kill -9 at a file operation": (kill_at_a_file, 5),
    "kill -9 inside a step, twice": (kill_at_a_step, 3),
    "kill -9 at any time": (kill_at_any_time, 3),
    "SIGTERM": (sigterm, 3),
    "full disk: run": (full_disk_training, 3),
    "full disk: run, injected": (full_disk_at_a_file, 3),
    "full disk: cache": (full_disk_caching, 2),
    "full disk: cache, injected": (full_disk_caching_at_a_file, 2),
    "kill -9 of precompute": (kill_caching, 2),
    "storage of runs goes and returns": (runs_vanish, 3),
    "storage of the cache goes and returns": (cache_vanishes, 2),
    "checkpoint damaged": (damaged_checkpoint, 4),
    "shard damaged": (damaged_shard, 2),
    "manifest damaged": (damaged_manifest, 1),
    "NaN loss": (nan_loss, 2),
    "plugin raises": (plugin_raises, 1),
    "plugin returns a wrong shape": (plugin_of_a_wrong_shape, 1),
    "clock jumps": (clock, 1),
    "other seeds": (other_seeds, 1),
    "other hash seed": (other_hashes, 1),
    "two runs of one name": (two_of_one_name, 2),
    "two resumptions at once": (two_resume_at_once, 2),
}
"""Name to function and how often, of all."""
