"""`kdray serve`: a student behind HTTP, as a deployment of Ray Serve. A replica needs an exported file, nothing else.

POST / with a picture as the body gives its likeliest classes (`?top=5`), as JSON; GET /health says what is served.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from ..registry import Registry
from ..ship.formats import read
from ..ship.predict import likeliest, preparation
from .session import RaySession

WAIT = 0.005
"""Seconds that a picture waits for others to share its batch."""
IN_HAND = 128
"""Pictures that a replica holds at least. Beyond it Ray Serve's proxy asks again later and later: with 4 in hand, 32
clients got about a seventh of the answers."""
TOP = 3
NAME = "kdray"


class Student:
    """A replica: it answers pictures that come together in one batch."""

    def __init__(self, file: bytes, suffix: str, max_batch: int, threads: int):
        from ray import serve

        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / f"student{suffix}"
            here.write_bytes(file)
            self.runs, self.facts = read(here)
        self.prepare = preparation(self.facts, Registry.default())

        @serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=WAIT)
        async def answer(pictures: list[Tensor]) -> list[Tensor]:
            self.answered["pictures"] += len(pictures)
            self.answered["batches"] += 1
            return list(await asyncio.to_thread(self._logits, torch.stack(pictures)))

        self.answer, self.answered = answer, {"pictures": 0, "batches": 0}

    @torch.no_grad()
    def _logits(self, pictures: Tensor) -> Tensor:
        return self.runs(pictures)

    async def __call__(self, request):
        from starlette.responses import JSONResponse

        match request.method, request.url.path:
            case "GET", "/health":
                facts = {key: self.facts[key] for key in ("run", "network", "kdray")}
                return JSONResponse({"status": "ok", **facts, "answered": self.answered})
            case "POST", "/":
                status, told = await self._told(await request.body(), request.query_params.get("top", str(TOP)))
                return JSONResponse(told, status)
        return JSONResponse({"error": "POST / with a picture as the body, or GET /health"}, 404)

    async def _told(self, body: bytes, top: str) -> tuple[int, dict]:
        if not (top.isascii() and top.isdigit() and int(top)):
            return 400, {"error": f"top must be a whole number of at least 1, not '{top}'"}
        try:
            picture = await asyncio.to_thread(self.prepare, body, "the body")
        except ConfigError as error:
            return 400, {"error": str(error)}
        return 200, likeliest(await self.answer(picture), self.facts, int(top))


def serve(file: Path, host: str, port: int, replicas: int, max_batch: int, ready: Callable[[str], None]) -> None:
    """Serve a file of `kdray export` until KeyboardInterrupt, in a Ray of its own on this machine, of which nothing is
    left. `ready` is told the address once it answers.

    Raises ConfigError where Ray Serve is not installed, the file is none of ours, the port is taken, or the machine has
    fewer CPUs than replicas.
    """
    need_serve()
    _refuse_taken(host, port)
    read(file)  # what is wrong with it is told here, once
    with RaySession("local") as session:
        from ray import serve as ray_serve

        cpus = int(sum(node.get("CPU", 0.0) for node in session.nodes()))
        if replicas > cpus:
            raise ConfigError(f"asked for {replicas} replicas, and this machine has {cpus} CPUs: --replicas {cpus}")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            ray_serve.start(http_options={"host": host, "port": port})
            deployment = ray_serve.deployment(
                Student,
                num_replicas=replicas,
                max_ongoing_requests=max(IN_HAND, 4 * max_batch),
                graceful_shutdown_wait_loop_s=0.1,
                graceful_shutdown_timeout_s=5.0,
                ray_actor_options={"num_cpus": 1},
            )
            threads = max(1, cpus // replicas)
            app = deployment.bind(file.read_bytes(), file.suffix, max_batch, threads)
            ray_serve.run(app, name=NAME, route_prefix="/")
            ready(f"http://{host}:{port}")
            threading.Event().wait()
        finally:
            ray_serve.delete(NAME)  # what is being answered is answered; the rest ends with Ray


def need_serve() -> None:
    """Raises ConfigError where Ray Serve is not installed."""
    if missing := [package for package in ("aiohttp", "fastapi", "starlette", "uvicorn") if find_spec(package) is None]:
        raise ConfigError(
            f"kdray serve needs Ray Serve ({', '.join(missing)} are not installed): pip install 'kdray[serve]', or "
            "pip install 'ray[serve]'"
        )


def _refuse_taken(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{host}:{port} cannot be served on: {error}. Choose another with --port or --host"
        ) from error
