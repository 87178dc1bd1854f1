"""How many trials a cluster holds at a time, and what each is given."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.tune import TuneConfig
from ...errors import ConfigError


@dataclass(frozen=True)
class Share:
    """cpus, gpus: of a worker."""

    cpus: float
    gpus: float
    workers: int
    at_once: int

    def of_a_trial(self) -> dict[str, float]:
        """What Ray Tune reserves. A trial with workers of its own reserves nothing besides for itself: it sits on the
        head node, and waits."""
        if self.workers > 1:
            return {"node:__internal_head__": 0.001}
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


def share_out_trials(tune: TuneConfig, nodes: list[dict[str, float]]) -> Share:
    """Raises ConfigError where the nodes do not hold one trial."""
    workers = tune.trial_workers
    cpus = (tune.cpus_per_trial or workers) / workers
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    gpus = tune.gpus_per_trial
    gpus = float(total["GPU"] >= workers) if gpus is None else gpus / workers
    if workers > 1 and gpus not in (0.0, 1.0):
        raise ConfigError(
            f"tune.gpus_per_trial: a trial of {workers} workers has no GPU, or one a worker: 0 or {workers}"
        )

    def hold(node: dict[str, float]) -> int:
        slots = node.get("CPU", 0.0) / cpus
        return int((min(slots, node.get("GPU", 0.0) / gpus) if gpus else slots) + 1e-9)

    room = sum(map(hold, nodes)) // workers
    if not room:
        asked = f"{workers} × {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise ConfigError(
            f"a trial asks for {asked}; the cluster has {len(nodes)} node{'s' if len(nodes) != 1 else ''} with "
            f"{total['CPU']:g} CPUs and {total['GPU']:g} GPUs. Ask for less: --trial-workers, --gpus-per-trial, "
            "tune.cpus_per_trial"
        )
    if workers > 1 and (tune.max_concurrent or 0) > room:
        raise ConfigError(
            f"--max-concurrent {tune.max_concurrent}: the cluster holds {room} trials of {workers} workers at a time"
        )
    return Share(cpus, gpus, workers, min(tune.max_concurrent or room, room, tune.count))
