"""One Ray session for all that a command runs: started here or joined, quiet, and left as it was found."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from ..clock import Part, timed
from ..config.schema import ScaleConfig
from ..errors import ConfigError
from .reaper import reaping

# Ray reads these at import; what the user has set stays. Without the first, workers notice nothing for 2 s at a time.
# The preemption watcher is a process that tells workers what lookout.py acts upon. By default workers have a
# niceness of 15, and whatever else the machine does holds up all that wait for each other at every step.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
}


WAITING_EVERY = 30.0
"""Seconds between two lines about room that is waited for."""


class RaySession:
    def __init__(self, address: str | None = None):
        of_job = os.environ.get("RAY_ADDRESS") if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else None
        self.address = of_job or address or os.environ.get("RAY_ADDRESS")  # a job belongs to its own cluster
        self.cleanup = contextlib.ExitStack()
        self.held: list[tuple[str, dict[str, float]]] = []

    @property
    def joined(self) -> bool:
        """Whether the cluster is somebody's, with other nodes and other users, rather than started here."""
        return bool(self.address) and self.address != "local"

    @timed(Part.RAY)
    def __enter__(self) -> RaySession:
        joins = self.joined
        for key, value in SETTINGS.items():
            if not (joins and key == "RAY_AUTH_MODE"):  # a cluster has its own way of authentication
                os.environ.setdefault(key, value)
        handler = signal.getsignal(signal.SIGTERM)
        import ray

        self.ray, self.started = ray, not ray.is_initialized()
        if self.started:
            if joins:
                _refuse_unreachable(self.address)
            tell_reaper = None if joins else self.cleanup.enter_context(reaping())
            quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
            try:
                ray.init(
                    address=self.address if joins else "local",
                    **({} if joins else {"include_dashboard": False}),
                    **quiet,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                self.cleanup.close()
                where = f"the Ray cluster at {self.address}" if joins else "Ray on this machine"
                # `ray start` asks for a token as soon as one lies there; who joins must say that he has it.
                asks = joins and "RAY_AUTH_MODE" not in os.environ
                hint = "; if it wants a token, set RAY_AUTH_MODE=token" if asks else ""
                raise ConfigError(f"{where} could not be reached: {error}{hint}") from error
            else:
                if tell_reaper:
                    tell_reaper(ray._private.worker._global_node.get_session_dir_path())
            finally:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, handler)  # Ray has put its own in the place
        return self

    @timed(Part.RAY)
    def __exit__(self, *error):
        if self.started:
            self.ray.shutdown()
            self.cleanup.__exit__(*error)

    def nodes(self) -> list[dict[str, float]]:
        """Resources of each living node, without what `hold` speaks of."""
        found = {node["NodeID"]: dict(node["Resources"]) for node in self.ray.nodes() if node["Alive"]}
        for node, resources in self.held:
            for key, value in resources.items() if node in found else ():
                found[node][key] = found[node].get(key, 0.0) - value
        return list(found.values())

    def addresses(self) -> dict[str, str]:
        """Of the living nodes that may hold a worker, by id."""
        nodes = (node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
        return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}

    def draining(self) -> set[str]:
        """Ids of the nodes that take no new work, since they are about to be taken away."""
        return set(self.ray._private.state.state.get_draining_nodes())

    def wait_for_room(
        self, wanted: list[dict[str, float]], say: Callable[[str], None], look: Callable[[], None] = lambda: None
    ) -> None:
        """Until a cluster that others use too has these resources free, all at once; what it waits for is said.
        `look` is called every second, and may end it by an exception."""
        from ray.util.placement_group import placement_group, remove_placement_group

        wanted = [{key: value for key, value in each.items() if value} for each in wanted]
        if not self.joined or not any(wanted):
            return
        group = placement_group([each for each in wanted if each], strategy="PACK")
        try:
            told, patience = -math.inf, 2.0  # what has just ended may still hold something
            while not group.wait(patience):
                if time.monotonic() - told > WAITING_EVERY:
                    told = time.monotonic()
                    say(f"waiting for room in the cluster: wanted {_sum(wanted)}, free {self._free()}")
                patience = 1.0
                look()
        finally:
            remove_placement_group(group)

    def _free(self) -> str:
        has, free = self.ray.cluster_resources(), self.ray.available_resources()
        return ", ".join(f"{free.get(k, 0):g} of {has[k]:g} {k}" for k in ("CPU", "GPU") if k in has)

    @contextlib.contextmanager
    def hold(self, taken: list[tuple[str, dict[str, float]]]):
        """While it is open, these resources of nodes are somebody's."""
        self.held += taken
        yield
        del self.held[-len(taken) :]


def _refuse_unreachable(address: str) -> None:
    """Raises ConfigError when nobody listens at host:port or ray://host:port: Ray itself tries for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdigit()):
        return  # auto, and what else Ray may know
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"nobody answers at the Ray address {address} ({error}). Start a cluster there (`ray start --head`), or "
            f"correct "
            "--address, RAY_ADDRESS or kdray.toml's [ray] address"
        ) from error


def _sum(wanted: list[dict[str, float]]) -> str:
    """`2 × 4 CPU`, `1 × 4 CPU 1 GPU and 2 × 1 CPU`."""
    each = [" ".join(f"{value:g} {key}" for key, value in one.items()) for one in wanted]
    return " and ".join(f"{each.count(one)} × {one}" for one in dict.fromkeys(each))


def resources(cpus: float, use_gpu: bool) -> dict[str, float]:
    """Of a worker."""
    return {"CPU": cpus, **({"GPU": 1} if use_gpu else {})}


def room(nodes: list[dict[str, float]], each: dict[str, float]) -> int:
    """How many times these resources fit on the nodes."""
    return sum(min(int(node.get(key, 0.0) / value + 1e-9) for key, value in each.items()) for node in nodes)


def fixed(scale: ScaleConfig, nodes: list[dict[str, float]]) -> ScaleConfig:
    """With the largest number of its range that fits; the smallest, where none does."""
    if not scale.elastic:
        return scale
    gpus = sum(int(node.get("GPU", 0.0)) for node in nodes)
    given = {"use_gpu": gpus >= scale.fewest} if scale.use_gpu == "auto" else {}
    numbers = range(scale.most, scale.fewest - 1, -1)
    choices = [scale.model_copy(update={"num_workers": workers, **given}) for workers in numbers]
    for choice in choices:
        with contextlib.suppress(ConfigError):
            share_out(choice, nodes)
            return choice
    return choices[-1]


def share_out(scale: ScaleConfig, nodes: list[dict[str, float]]) -> tuple[float, bool]:
    """CPUs a worker, and whether each gets a GPU. Raises ConfigError when the nodes have less than asked, with flags
    that would fit."""
    scale = fixed(scale, nodes)
    workers = scale.num_workers
    cpus = [node.get("CPU", 0.0) for node in nodes]
    gpus = [node.get("GPU", 0.0) for node in nodes]
    has = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} with {sum(cpus):g} CPUs and {sum(gpus):g} GPUs"

    use_gpu = sum(int(n) for n in gpus) >= workers if scale.use_gpu == "auto" else scale.use_gpu
    if use_gpu and sum(int(n) for n in gpus) < workers:
        fits = f"--num-workers {int(sum(gpus))}, or " if sum(gpus) >= 1 else ""
        raise ConfigError(
            f"asked for {workers} workers with a GPU each; the cluster has {has}. What fits: {fits}scale.use_gpu=false"
        )

    def hold(each: float) -> int:
        return room(nodes, {"CPU": each})

    if scale.cpus_per_worker is not None:
        each = scale.cpus_per_worker
    else:
        each = max(1, int(sum(cpus)) // workers)
        while each > 1 and hold(each) < workers:
            each -= 1
    if hold(each) < workers:
        options = [f"--num-workers {hold(each)}"] if hold(each) else []
        shares = [sum(cpus) / workers, *(1 / k for k in range(1, 1001))]  # the first fits on one node always
        smaller = next((share for share in shares if share and hold(share) >= workers), None)
        if smaller:
            options.append(f"--cpus-per-worker {math.floor(smaller * 1000) / 1000:g}")
        raise ConfigError(
            f"asked for {workers} workers with {each:g} CPU{'s' if each != 1 else ''} each; the cluster has {has}. "
            f"What fits: {' or '.join([*options, '--num-workers 0 (in this process)'])}"
        )
    return each, use_gpu
