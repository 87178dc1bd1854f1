"""A Ray cluster of our own, of nodes with one CPU each, in processes that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

MARK = "KDRAY_CHAOS_CLUSTER"


class Cluster:
    """env: for all its processes. The head has no CPU."""

    def __init__(self, folder: Path, nodes: int, env: dict[str, str]):
        self.mark = f"{MARK}={folder}-{os.getpid()}"
        env = {**os.environ, **env, MARK: self.mark.partition("=")[2], "RAY_AUTH_MODE": "disabled"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chaos.cluster", str(nodes)],
            env={**env, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(folder / "cluster.log", "w"),  # noqa: SIM115
            text=True,
            start_new_session=True,
        )
        self.env = {"RAY_ADDRESS": self._answer(), "RAY_AUTH_MODE": "disabled"}

    def _answer(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, "the cluster did not start"
        return line

    def ask(self, what: str) -> str:
        print(what, file=self.process.stdin, flush=True)
        return self._answer()

    def add_node(self) -> None:
        self.ask("node")

    def left(self) -> list[str]:
        """Placement groups and actors that are somebody's still."""
        return json.loads(self.ask("left"))

    def kill(self) -> None:
        """All of it, at once."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                pid, env = int(folder.name), (folder / "environ").read_bytes().split(b"\0")
                # Processes of Ray's that give themselves a title write it over their environment.
                if self.mark.encode() in env or os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(int(sys.argv[1])):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    answers, sys.stdout = sys.stdout, sys.stderr  # Ray tells things there too
    print(cluster.address, file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "node":
            cluster.add_node(num_cpus=1)
            print("added", file=answers, flush=True)
        else:
            print(json.dumps(_left()), file=answers, flush=True)


def _left() -> list[str]:
    from ray._private.state import actors
    from ray.util import placement_group_table

    # Ray Train starts it once in a cluster, detached, for all of its jobs: others' too.
    rays = "_AutoscalingCoordinatorActor"
    groups = [f"placement group {key}" for key, g in placement_group_table().items() if g["state"] != "REMOVED"]
    return groups + [
        f"actor {a['ActorClassName']}"
        for a in actors().values()
        if a["State"] != "DEAD" and a["ActorClassName"] != rays
    ]


if __name__ == "__main__":
    main()
