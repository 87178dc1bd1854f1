"""Two workers that stay: real processes, joined by torch.distributed, that play any number of rehearsals."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import traceback
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from .rehearsal import Moment

WORKERS = 2
PATIENCE = 20
"""Seconds that a worker waits for the other one in a gather."""


class WorkerFailed(Exception):
    """What a worker raised."""


class Workers:
    """`sources`: text of local plugins by name, so that their classes are found in the processes too."""

    def __init__(self, sources: dict[str, str]):
        self.sources, self.processes, self.pipes = sources, [], []

    def start(self) -> None:
        """Returns at once; the processes get ready meanwhile."""
        if self.processes:
            return
        self.folder = Path(tempfile.mkdtemp(prefix="kdray-check-"))
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kdray.testing.workers import serve; serve()"
        )
        for rank in range(WORKERS):
            ours, theirs = Pipe()
            arguments = [json.dumps(sys.path), str(theirs.fileno()), str(rank), str(self.folder / "meeting")]
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)
            ours.send_bytes(pickle.dumps(self.sources))

    def rehearse(self, cls: type, options: dict, pair: str) -> list[list[Moment]]:
        """The moments of each worker. Raises WorkerFailed; the next call then has new processes."""
        self.start()
        try:
            job = pickle.dumps((cls, options, pair))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise WorkerFailed(f"its class must stand at the top of a module to be found there ({error})") from None
        try:
            for pipe in self.pipes:
                pipe.send_bytes(job)
            answers: dict[Connection, list[Moment]] = {}
            while len(answers) < WORKERS:
                for pipe in wait([pipe for pipe in self.pipes if pipe not in answers]):
                    kind, value = pickle.loads(pipe.recv_bytes())
                    if kind == "failed":
                        raise WorkerFailed(value)
                    answers[pipe] = value
            return [answers[pipe] for pipe in self.pipes]
        except (EOFError, OSError) as error:
            self.stop()
            raise WorkerFailed(f"a worker process died ({error or 'end of file'})") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for process, pipe in zip(self.processes, self.pipes):
            pipe.close()
            process.kill()
            process.wait()
        if self.processes:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.processes, self.pipes = [], []


@cache
def workers() -> Workers:
    """Those of this process, ended with it."""
    from ..registry import Registry

    found = Workers(Registry.default().local_sources())
    atexit.register(found.stop)
    return found


def serve() -> None:
    """The life of a worker process."""
    import torch
    import torch.distributed as dist

    from ..engine.context import Context
    from ..plugin_sources import import_text
    from .rehearsal import Rehearsal
    from .scenes import scene

    pipe, rank, meeting = Connection(int(sys.argv[2])), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORKERS, timeout=timedelta(seconds=PATIENCE)
    )
    try:
        for name, text in pickle.loads(pipe.recv_bytes()).items():
            import_text(name, text, f"<local plugin {name}.py>")
        while True:
            job = pipe.recv_bytes()
            try:
                cls, options, pair = pickle.loads(job)
                moments = Rehearsal(cls, options, scene(pair), context=Context(rank, WORKERS)).run()
                answer = ("done", moments)
            except Exception as error:
                answer = ("failed", "".join(traceback.format_exception(error)[-3:]).strip())
            pipe.send_bytes(pickle.dumps(answer))
    except EOFError:
        pass  # nobody asks any more
