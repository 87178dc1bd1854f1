"""A student behind HTTP says what `kdray predict` says, and when it is stopped nothing is left of it."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from kdray.config.project import find_project
from kdray.data.published import digits
from kdray.errors import ConfigError
from kdray.launch import serve as module
from kdray.launch.serve import serve
from kdray.ship.export import export
from kdray.ship.formats import read
from kdray.ship.predict import predict
from tests.conftest import Lab, hear_interrupts
from tests.plugins_host.test_third_party import Elsewhere

NUMBER = 40


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def call(address: str, data: bytes | None = None) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data=data), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def of_session(mark: str) -> list[str]:
    """Living processes that were started with this mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes() and "Z" not in _state(process):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


class Server:
    def __init__(self, folder: Path, python: str, *arguments):
        self.port, self.mark = free_port(), f"mark-{os.urandom(8).hex()}"
        self.process = subprocess.Popen(
            [python, "-m", "kdray", "serve", *map(str, arguments), "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "KDRAY_TEST_MARK": self.mark},
            preexec_fn=hear_interrupts,
        )
        self.address = f"http://127.0.0.1:{self.port}"
        self.first = self.process.stdout.readline()

    def stop(self, number=signal.SIGINT) -> tuple[str, str]:
        self.process.send_signal(number)
        try:
            return self.process.communicate(timeout=120)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """That of an environment with Ray Serve: with its packages here, every Ray of the other tests would be a larger one
    than most people have."""
    there = Elsewhere(tmp_path_factory.mktemp("environment"))
    command = [there.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "ray[serve]"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Ray Serve cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return there.python


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def run(home):
    return home.run("served", run={"dir": str(home.path / "runs")}, data={"samples": 600}, schedule={"epochs": 4})


@pytest.fixture(scope="module")
def pictures(home) -> list[Path]:
    """In several sizes and formats."""
    folder, source, files = home.path / "pictures", digits(None, None, "test"), []
    folder.mkdir()
    for i in range(NUMBER):
        picture = Image.fromarray(source.images[i, 0].numpy())
        files.append(folder / f"{i:02d}.{'bmp' if i % 3 == 0 else 'png'}")
        (picture.resize((30, 20)) if i % 2 else picture).save(files[-1])
    return files


def cut_off() -> bytes:
    """Most of a picture."""
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "png")
    return whole.getvalue()[:1500]


@pytest.mark.thorough
def test_from_the_first_picture_to_ctrl_c(home, run, pictures, python):
    """A run, by two replicas that gather pictures into batches."""
    server = Server(home.path, python, "served", "--replicas", 2, "--max-batch", 8)
    try:
        assert server.first.startswith(f"served answers at {server.address}"), server.process.stderr.read()
        status, health = call(f"{server.address}/health")
        assert (status, health["status"], health["run"]) == (200, "ok", "served")

        told = subprocess.run(
            [sys.executable, "-m", "kdray", "predict", "served", *map(str, pictures), "--json"],
            cwd=home.path,
            capture_output=True,
            text=True,
        )
        expected = json.loads(told.stdout)
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda file: call(f"{server.address}/?top=3", file.read_bytes()), pictures))
        for (status, ours), theirs in zip(found, expected, strict=True):
            assert status == 200 and ours["classes"] == theirs["classes"]
            assert ours["probabilities"] == pytest.approx(theirs["probabilities"], rel=1e-4)

        assert call(server.address, b"no picture")[0] == 400
        status, problem = call(server.address, b"no picture")
        assert status == 400 and "no picture format" in problem["error"]
        status, problem = call(server.address, cut_off())
        assert status == 400 and "cannot be decoded" in problem["error"]
        assert call(f"{server.address}/?top=none", pictures[0].read_bytes())[0] == 400
        assert call(f"{server.address}/elsewhere")[0] == 404
        assert call(server.address, pictures[0].read_bytes())[0] == 200, "bad ones do no harm"
        assert len(of_session(server.mark)) > 3
    finally:
        out, err = server.stop()
    assert out == "stopped\n" and server.process.returncode == 0 and "Traceback" not in err, err
    for _ in range(200):  # the reaper is told after the driver's last line
        if not of_session(server.mark):
            break
        time.sleep(0.1)
    assert of_session(server.mark) == []
    with pytest.raises(urllib.error.URLError):
        call(f"{server.address}/health")
    with socket.create_server(("127.0.0.1", server.port)):
        pass


@pytest.mark.thorough
def test_a_file_batches_and_sigterm(home, run, pictures, python):
    file = export(run, "onnx", home.path / "served.onnx", False, home.registry, find_project().data)["file"]
    server = Server(home.path, python, file)
    try:
        assert "answers at" in server.first, server.process.stderr.read()
        runs, facts = read(Path(file))
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda picture: call(f"{server.address}/?top=1", picture.read_bytes()), pictures))
        for (status, ours), theirs in zip(found, predict(runs, facts, pictures, 1, home.registry), strict=True):
            assert status == 200 and ours["classes"] == theirs["classes"]
        answered = call(f"{server.address}/health")[1]["answered"]
        assert answered["pictures"] == NUMBER > answered["batches"], "none were answered together"
    finally:
        out, err = server.stop(signal.SIGTERM)
    assert out == "stopped\n" and server.process.returncode == 0, err


def test_what_is_refused_before_ray_is_started(home, run, monkeypatch):
    file = home.path / "no.pt2"
    file.write_bytes(b"no")
    monkeypatch.setattr(module, "find_spec", lambda name: name)  # as if Ray Serve were here
    with pytest.raises(ConfigError, match=r"no\.pt2 cannot be read as"):
        serve(file, "127.0.0.1", free_port(), 1, 8, print)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} cannot be served on: .*--port"):
            serve(file, "127.0.0.1", port, 1, 8, print)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'kdray\[serve\]'"):
        serve(file, "127.0.0.1", free_port(), 1, 8, print)
