"""Run folders that cannot be, runs that fail, are interrupted and go on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from kdray.run.asking import CHECKPOINT, ask
from kdray.run.folder import RunFolder
from tests.conftest import hear_interrupts


def test_a_name_that_is_taken(desk):
    desk.trained(name="mine")
    message = desk.refused("train", desk.config(), "--name", "mine")
    assert "a run named 'mine' exists already" in message and "--name" in message
    assert "resume" not in message  # it is finished


def test_a_name_that_is_taken_by_a_run_that_can_go_on(desk):
    run = desk.trained(name="mine")
    (run / "status.json").write_text('{"state": "failed"}')
    assert "go on with it by `kdray resume mine`, or choose" in desk.refused("train", desk.config(), "--name", "mine")
    shutil.rmtree(run / "checkpoints")  # as of one that failed in its first step
    message = desk.refused("train", desk.config(), "--name", "mine")
    assert "(failed, without a checkpoint): begin it again with the config it has there" in message
    (run / "status.json").unlink()
    assert f"{run} exists already, and is no run: choose" in desk.refused("train", desk.config(), "--name", "mine")


def test_a_name_that_is_taken_by_a_later_seed(desk):
    desk.trained(name="mine-seed1")
    message = desk.refused("train", desk.config(), "--name", "mine", "--seeds", "0,1")
    assert "mine-seed1" in message  # and seed 0 was not trained first


def test_a_run_folder_below_a_file(desk):
    config = desk.config(run={"dir": "small.yaml/runs"})
    message = desk.refused("train", config)
    assert f"{desk.path / 'small.yaml/runs/small'} cannot be used: Not a directory" in message


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KB; `read_only()` makes it one that cannot be written."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", disk], capture_output=True).returncode

    if not shutil.which("mount") or mount("-o", "size=400k"):
        pytest.skip("file systems cannot be mounted here")
    yield SimpleNamespace(path=disk, read_only=lambda: mount("-o", "remount,ro"))
    subprocess.run(["umount", disk], check=True)


def test_a_read_only_run_folder(desk, small_disk):
    small_disk.read_only()
    assert "Read-only file system" in desk.refused("train", desk.config(run={"dir": "disk"}))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_a_disk_that_fills_up(desk, small_disk, monkeypatch):
    """The run fails plainly, its checkpoints are whole, and it goes on when there is space again."""
    config = desk.config(run={"dir": "disk"}, schedule={"epochs": 3})
    from kdray.engine import checkpoint

    fill, save = small_disk.path / "fill", checkpoint.save

    def then_fill(*arguments):
        path = save(*arguments)
        with fill.open("wb", buffering=0) as file:
            try:
                while file.write(b"0" * 1024):
                    pass
            except OSError:
                pass
        return path

    monkeypatch.setattr(checkpoint, "save", then_fill)
    result = desk("train", config)
    assert result.code == 1
    assert "No space left on device" in result.err.splitlines()[-1]
    monkeypatch.undo()
    monkeypatch.chdir(desk.path)
    fill.unlink()
    assert desk("resume", "disk/small").code == 0


def test_too_little_space_for_the_checkpoints(desk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "0 MB are free, and checkpoints need about" in desk.refused("train", desk.config())
    assert not desk.path.joinpath("runs").exists()


def test_a_loss_that_is_no_number_any_more(desk):
    result = desk("train", desk.config(optimizer={"lr": 1e38}, schedule={"epochs": 3}))
    assert result.code == 1
    assert (
        "ce is not a finite number any more in epoch 1, at step 1: lower optimizer.lr" in result.err
        and "Traceback" not in result.err
    )
    assert json.loads(desk.path.joinpath("runs/small/status.json").read_text())["state"] == "failed"


LOST = """
from kdray import *

class Lost(Distiller):
    def forward(self, student, teacher, batch, step):
        return student.logits.mean() * (float("nan") if step.number == 1 else 1)

@hookimpl
def kdray_distillers():
    return [DistillerSpec("lost", Lost)]
"""


@pytest.mark.parametrize("every_steps", [None, 3])
def test_the_loss_that_was_the_first_to_be_lost_is_named(desk, every_steps):
    """At an epoch's end, and at a checkpoint inside one; the others follow it through the student's weights."""
    desk.write("lost.py", LOST)
    desk.write("kdray.toml", '[plugins]\nload = ["lost.py"]\n')
    data, checkpoint = {"name": "digits", "batch_size": 20, "samples": 100}, {"every_steps": every_steps}
    result = desk("train", desk.config(data=data, losses={"ce": {}, "lost": {}}, checkpoint=checkpoint))
    assert result.code == 1
    found = "lost is not a finite number any more in epoch 1, at step 1, before ce: look at what lost computes"
    assert found in result.err


def test_the_samples_of_a_lost_batch_are_told(desk):
    desk.write("lost.py", LOST)
    desk.write("kdray.toml", '[plugins]\nload = ["lost.py"]\n')
    result = desk("train", desk.config(losses={"ce": {}, "lost": {}}))
    (file,) = desk.path.glob("runs/small/failures/rank-0.json")
    found = json.loads(file.read_text())
    assert (found["terms"], found["epoch"], found["step"], len(set(found["samples"]))) == (["lost"], 1, 1, 50)
    shown = ", ".join(map(str, found["samples"][:10]))
    assert f"The samples of that step: {shown}, … (50 in all)." in result.err


def test_too_many_lost_batches_stop_a_run_that_leaves_them_out(desk):
    result = desk("train", desk.config(optimizer={"lr": 1e38}, schedule={"epochs": 3}, engine={"nonfinite": "skip"}))
    assert result.code == 1 and "Traceback" not in result.err
    assert "warning: the batch of step 1 is left out: ce is no finite number" in result.err
    assert "2 batches in a row had to be left out; in the last of them ce is not a finite number any more" in result.err


def test_losses_that_are_lost_at_once(desk):
    losses = {"ce": {}, "smooth": {"use": "ce", "label_smoothing": 0.1}}
    result = desk("train", desk.config(optimizer={"lr": 1e38}, schedule={"epochs": 3}, losses=losses))
    found = "ce and smooth are not finite numbers any more in epoch 1, at step 1, all at once, as when the student's"
    assert found in result.err


def test_an_error_in_a_users_network(desk):
    desk.write(
        "nets_that_break.py",
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(64, num_classes)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise IndexError('in the middle')\n"
        "        return self.fc(x.flatten(1))\n",
    )
    result = desk("train", desk.config(student={"model": "nets_that_break:Net"}))
    assert result.code == 1
    lines = result.err.splitlines()
    assert lines[-1] == "IndexError: in the middle" and "nets_that_break.py" in lines[-3]
    assert json.loads(desk.path.joinpath("runs/small/status.json").read_text())["state"] == "failed"


def test_resuming_what_is_no_run(desk):
    desk.trained(name="mine")
    assert "no run 'mine2'" in desk.refused("resume", "mine2")
    assert "Did you mean 'mine'?" in desk.refused("resume", "mime")


def test_resuming_what_is_finished(desk):
    desk.trained(name="mine")
    result = desk("resume", "mine", "--json")
    assert result.code == 0 and "finished; nothing is left to do" in result.err
    assert json.loads(result.out)["name"] == "mine"


def test_a_checkpoint_of_another_config(desk):
    run = desk.trained("schedule.epochs=2", name="mine")
    for name, text in (("status.json", '{"state": "interrupted"}'), ("config.yaml", None)):
        file = run / name
        file.write_text(text or file.read_text().replace("lr: 0.05", "lr: 0.01"))
    assert "its config.yaml was changed" in desk.refused("resume", "mine", code=4)


def _started(desk, run, *arguments):
    """A command in a process of its own, whose run has begun to train."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kdray", *map(str, arguments)],
        cwd=desk.path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    until = time.monotonic() + 300
    while not list(desk.path.glob(f"runs/{run}/progress.json")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


LONG = ("schedule.epochs=40", "data.samples=1000", "checkpoint.every_epochs=30", "data.augment=[crop]")


def _state(desk, run):
    return json.loads(desk.path.joinpath("runs", run, "status.json").read_text())["state"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)])
def test_interrupted_and_resumed(desk, number):
    """In the middle of an epoch, also of one whose update is not complete; the weights at the end are those of the
    unbroken run, bit for bit."""
    long = (*LONG, "engine.accumulate=3")
    process = _started(desk, "broken", "train", desk.config(), *long, "--name", "broken")
    process.send_signal(number)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 130, err
    assert "interrupted: `kdray resume broken` goes on" in err and "Traceback" not in err
    assert _state(desk, "broken") == "interrupted"
    (kept,) = desk.path.glob("runs/broken/checkpoints/*")
    assert not list(desk.path.glob("runs/broken/**/.writing-*"))
    done = json.loads((kept / "state.json").read_text())
    assert done["batch"] % 3 == 0 and done["step"] < 800

    kept.with_name(".writing-step-000000999").mkdir()  # as a process leaves it that is killed just then
    assert desk("resume", "broken").code == 0
    assert not list(desk.path.glob("runs/broken/**/.writing-*"))
    whole = desk.trained(*long, name="whole")
    for file in ("student.safetensors", "best.safetensors"):
        assert desk.path.joinpath("runs/broken", file).read_bytes() == (whole / file).read_bytes()
    rows = [[row for row in RunFolder(run).rows("epoch")] for run in (desk.path / "runs/broken", whole)]
    assert [row["terms"] for row in rows[0]] == [row["terms"] for row in rows[1]]


@pytest.mark.thorough
def test_asked_for_a_checkpoint_and_goes_on(desk):
    process = _started(desk, "small", "train", desk.config(), *LONG)
    run = desk.path / "runs/small"
    ask(run, CHECKPOINT)
    assert process.wait(timeout=300) == 0
    assert not (run / ".checkpoint").exists()
    assert next(row["step"] for row in RunFolder(run).rows("checkpoint")) < 600


@pytest.mark.thorough
def test_stopped_while_its_teacher_is_trained(desk):
    """By `kdray stop` of the run that waits for the teacher; `kdray resume` of it goes on with both."""
    data = {"name": "digits", "batch_size": 50, "samples": 1000}
    name = desk.config("teacher.yaml", name="teacher", data=data, schedule={"epochs": 40})
    teacher = {"model": "convnet", "widths": [4], "train": name}
    config = desk.config(teacher=teacher, losses={"ce": {}, "kd": {"temperature": 2.0}})
    process = _started(desk, "teacher-*", "train", config)
    told = desk("stop", "small")
    assert told.code == 0 and "small has stopped: `kdray resume small` goes on with it" in told.out, told
    assert process.wait(timeout=300) == 130
    assert "interrupted: `kdray resume small` goes on" in process.communicate()[1]
    (trained,) = desk.path.glob("runs/teacher-*")
    assert _state(desk, "small") == _state(desk, trained.name) == "interrupted"
    assert list(trained.glob("checkpoints/step-*"))
    resumed = desk("resume", "small")
    assert resumed.code == 0, resumed.err
    assert _state(desk, "small") == _state(desk, trained.name) == "finished"
    assert desk("stop", "small").out == "small is not running: finished\n"


def test_more_workers_than_cpus(desk):
    """The one test here that starts Ray."""
    message = desk.refused("train", desk.config(data={"name": "digits", "batch_size": 1000}), "--num-workers", 1000)
    assert "asked for 1000 workers with 1 CPU each; the cluster has 1 node with" in message
    assert "What fits: --num-workers " in message and "--cpus-per-worker 0." in message


def test_a_cluster_that_is_not_there(desk):
    message = desk.refused("train", desk.config(), "--num-workers", 1, "--address", "127.0.0.1:1")
    assert "nobody answers at the Ray address 127.0.0.1:1" in message
