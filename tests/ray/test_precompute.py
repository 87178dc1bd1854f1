"""`kdray precompute` under kills, full disks, sick teachers and company: the bytes are those of one worker in peace."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.errors import ConfigError, RunFailed
from kdray.launch.precompute import Precompute
from kdray.registry import Registry
from kdray.run.console import Console
from kdray.teacher.cache import Cache
from kdray.teacher.storage import UNFINISHED, open_storage
from tests.conftest import Lab

# A plugin file, since it travels to workers. The teacher writes down who asks it, and does what it is told.
WATCHED = """
import os, time
from pathlib import Path

from kdray import ModelSpec, hookimpl
from kdray.models.convnet import ConvNet, ConvNetOptions

FOLDER = Path({folder!r})

class Watched(ConvNet):
    passes = 0

    def forward(self, x):
        answer = super().forward(x)
        if len(x) < 256:  # it is probed
            return answer
        with open(FOLDER / "passes", "a") as file:
            print(os.getpid(), file=file)
        self.passes += 1
        match (FOLDER / "order").read_text().split():
            case ["slow"]:
                time.sleep(0.1)
            case ["wait"]:
                while not (FOLDER / "go").exists():
                    time.sleep(0.02)
                time.sleep(0.03)
            case ["raise", n] if self.passes >= int(n):
                raise ValueError("the teacher is ill")
            case ["nan", n] if self.passes >= int(n):
                return answer * float("nan")
        return answer

def build(*, num_classes, in_channels, weights, options):
    return Watched(options.widths, num_classes, in_channels)

@hookimpl
def kdray_models():
    return [ModelSpec("watched", build, Options=ConvNetOptions)]
"""
SAMPLES = 256  # a page is a shard, and a pass of the teacher
SHARDS = 30
ANSWERS = SHARDS * SAMPLES
LATER = 5  # shards: the middle


class Place(Lab):
    """A folder with a watched teacher, where caches of one config are made in many ways."""

    def __init__(self, path: Path, teacher_weights: str):
        super().__init__(path)
        (path / "watched.py").write_text(WATCHED.format(folder=str(path)))
        (path / "kdray.toml").write_text('[plugins]\nload = ["watched.py"]\n')
        self.registry = Registry.load(find_project(path))
        self.teacher_weights = teacher_weights
        self.order("slow")

    def order(self, text: str) -> None:
        """What the teacher is to do from now on; who asked it before is forgotten."""
        (self.path / "order").write_text(text)
        (self.path / "passes").write_text("")

    def asking(self) -> list[int]:
        """The process of each pass of the teacher, in their order."""
        return [int(line) for line in (self.path / "passes").read_text().splitlines()]

    def written(self, name: str, workers: int, **changes) -> Path:
        """A config whose cache has this name."""
        teacher = {"model": "watched", "widths": [16, 32], "checkpoint": self.teacher_weights}
        return self.config(
            name,
            data={"samples": SAMPLES, "augment": [{"random_resized_crop": {"size": 8, "min_area": 0.5}}]},
            teacher={**teacher, "cache": {"path": str(self.path / "caches" / name)}},
            losses={"ce": {}, "kd": {}, "crd": {"dim": 4}},
            schedule={"epochs": SHARDS},
            scale={"num_workers": workers, **changes},
        )

    def precompute(self, name: str, workers: int, **changes) -> dict:
        config = load_config(self.written(name, workers, **changes), registry=self.registry).config
        (found,) = Precompute(self.registry, find_project(self.path), Console(), "test").run(config)
        return found

    def cache(self, name: str) -> Cache:
        return Cache(open_storage(str(self.path / "caches" / name)))

    def shards(self, name: str) -> int:
        """Of the output that is written last."""
        return len(self.cache(name).shards("embedding"))

    def files(self, name: str) -> dict[str, bytes]:
        """Without what a killed writer had begun: nobody reads that, and commands remove it when it is an hour old."""
        folder = self.path / "caches" / name
        files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(UNFINISHED)]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    def assert_whole(self, name: str) -> None:
        """What is stored, of part of the work."""
        cache = self.cache(name)
        for output in ("logits", "embedding"):
            shards = cache.shards(output)
            assert 0 < len(shards) < SHARDS
            assert not [error for _, error in cache.check(output, shards) if error]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, teacher_weights):
    return Place(tmp_path_factory.mktemp("precompute"), teacher_weights)


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.chdir(folder.path)
    folder.order("slow")
    return folder


@pytest.fixture
def peaceful(place):
    """What one process in peace writes."""
    if not place.shards("peaceful"):
        place.order("")
        assert place.precompute("peaceful", 0)["computed"] == ANSWERS
        place.order("slow")
    files = place.files("peaceful")
    assert len(files) == 2 * SHARDS + 1
    return files


def kdray(*args, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "kdray", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_until(found, what: str, seconds: float = 300):
    """What `found` finds, when it is something."""
    for _ in range(int(seconds / 0.02)):
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"in vain: {what}")


class Killer(threading.Thread):
    """Kills workers that the teacher answers just now, once some shards are there: `deaths` different ones."""

    def __init__(self, place: Place, name: str, deaths: int):
        super().__init__(daemon=True)
        self.place, self.cache_name, self.deaths = place, name, deaths
        self.killed: list[int] = []

    def run(self) -> None:
        wait_until(lambda: self.place.shards(self.cache_name) >= LATER, "some shards")
        while len(self.killed) < self.deaths:
            victim = wait_until(self._victim, "another worker")
            os.kill(victim, signal.SIGKILL)
            self.killed.append(victim)

    def _victim(self) -> int | None:
        return next((pid for pid in self.place.asking()[-1:] if pid not in [os.getpid(), *self.killed]), None)


# -- workers that vanish -------------------------------------------------------------------------------------------


def test_a_killed_worker_changes_no_byte(ray_session, place, peaceful):
    killer = Killer(place, "killed", deaths=1)
    killer.start()
    found = place.precompute("killed", 2)
    assert len(killer.killed) == 1 and len(set(place.asking())) > 1
    assert found["computed"] == found["missing_before"] == ANSWERS
    assert place.files("killed") == peaceful


@pytest.mark.thorough
def test_one_worker_writes_what_this_process_writes(ray_session, place, peaceful):
    place.order("")
    assert place.precompute("one", 1)["computed"] == ANSWERS
    assert os.getpid() not in place.asking()
    assert place.files("one") == peaceful


@pytest.mark.thorough
def test_too_many_deaths_end_the_command(ray_session, place, peaceful):
    killer = Killer(place, "deaths", deaths=2)
    killer.start()
    with pytest.raises(RunFailed, match=r"workers were lost more often than scale.max_failures \(1\)") as raised:
        place.precompute("deaths", 2, max_failures=1)
    assert raised.value.exit_code == 1 and len(killer.killed) == 2
    place.assert_whole("deaths")
    place.order("")
    found = place.precompute("deaths", 0)
    assert ANSWERS - found["missing_before"] >= LATER * SAMPLES and found["computed"] == found["missing_before"]
    assert place.files("deaths") == peaceful


# -- commands that vanish ------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_killed_command_goes_on_where_it_was(ray_session, place, peaceful):
    command = kdray("precompute", place.written("driver", 2), start_new_session=True)
    wait_until(lambda: place.shards("driver") >= LATER or command.poll() is not None, "some shards")
    command.kill()
    command.communicate()
    asked = set(place.asking()) - {os.getpid()}
    assert asked and command.pid not in asked
    wait_until(lambda: not any(map(lives, asked)), "the end of the workers")
    place.assert_whole("driver")
    kept = {file: file.stat().st_mtime_ns for file in (place.path / "caches" / "driver").glob("*/*.safetensors")}

    # What writers leave behind that die in a write: half a shard, of just now and of long ago.
    shard = next(iter(kept))
    new, old = (shard.with_name(UNFINISHED + name) for name in ("new", "old"))
    for file in (new, old):
        file.write_bytes(shard.read_bytes()[:1000])
    os.utime(old, (time.time() - 7200,) * 2)

    place.order("")
    found = place.precompute("driver", 2)
    assert found["needed"] == ANSWERS
    assert 0 < found["computed"] == found["missing_before"] <= ANSWERS - LATER * SAMPLES
    assert {file: file.stat().st_mtime_ns for file in kept} == kept  # not written again
    assert not old.exists()
    new.unlink()  # its writer might live
    assert place.files("driver") == peaceful


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.thorough
def test_two_commands_at_once_share_the_work(place, peaceful):
    place.order("wait")
    commands = [kdray("precompute", place.written("shared", 0), "--json") for _ in range(2)]
    wait_until(lambda: len(set(place.asking())) == 2, "both to begin")
    (place.path / "go").touch()
    outputs = [command.communicate(timeout=600) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs
    found = [json.loads(output)[0] for output, _ in outputs]
    assert [each["missing_before"] for each in found] == [ANSWERS] * 2
    assert all(each["computed"] > 0 for each in found)
    assert ANSWERS <= sum(each["computed"] for each in found) < 1.5 * ANSWERS
    assert place.files("shared") == peaceful


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers, who", [(0, "the work"), (2, "a worker")])
def test_a_teacher_that_raises_is_told(request, place, workers, who):
    if workers:
        request.getfixturevalue("ray_session")
    place.order("raise 6")
    name = f"raises-{workers}"
    with pytest.raises(RunFailed, match=rf"{who} failed:(.|\n)*ValueError: the teacher is ill") as raised:
        place.precompute(name, workers)
    assert raised.value.exit_code == 1
    place.assert_whole(name)


def test_a_teacher_that_answers_nothing_is_told(place):
    place.order("nan 6")
    with pytest.raises(ConfigError, match="the teacher's logits are not finite"):
        place.precompute("nan", 0)
    place.assert_whole("nan")


def test_a_full_disk_is_told_and_the_work_goes_on(ray_session, place, peaceful):
    disk = place.path / "caches" / "full"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        place.order("")
        ballast = disk / "ballast"
        with contextlib.suppress(OSError):
            ballast.write_bytes(bytes(4 << 20))
        with pytest.raises(RunFailed, match=rf"{disk} cannot be written: No space left"):
            place.precompute("full", 0)
        os.truncate(ballast, (2 << 20) - (256 << 10))
        with pytest.raises(RunFailed, match=rf"{disk} cannot be written: No space left.*goes on when it can") as raised:
            place.precompute("full", 1)
        assert raised.value.exit_code == 1
        place.assert_whole("full")
        ballast.unlink()
        found = place.precompute("full", 0)
        assert 0 < found["computed"] == found["missing_before"] < ANSWERS
        assert place.files("full") == peaceful
    finally:
        subprocess.run(["umount", disk], check=True)


# -- another node --------------------------------------------------------------------------------------------------

NODE = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.thorough
def test_a_node_that_does_not_see_the_cache_is_told(place):
    """A node whose own empty folder is where the cache is: in a mount namespace of its own."""
    hidden = place.path / "caches" / "hidden"
    hidden.mkdir(parents=True)
    hide = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs "$1" && exec "$2" -c "$3"', "-"]
    from kdray.launch.session import SETTINGS

    with subprocess.Popen(
        [*hide, hidden, sys.executable, NODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **SETTINGS},
    ) as node:
        address = node.stdout.readline().strip()
        if not address:
            pytest.skip("needs the right to unshare and mount")
        try:
            command = kdray("precompute", place.written("hidden", 1), "--address", address)
            _, told = command.communicate(timeout=600)
        finally:
            node.stdin.close()
    assert command.returncode == 2, told
    assert f"does not see the cache {hidden}" in told and "on storage that every node shares" in told
    assert "Traceback" not in told
    assert set(place.files("hidden")) == {"manifest.json"}
