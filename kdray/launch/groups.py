"""Placement groups of Ray Train runs, which Ray keeps when a run's controller dies or fails to start its workers.

Ray's own cleaner is an actor for each run that asks the dashboard; without one it neither cleans nor ends. What it
looks for, Ray's control store (GCS) notes of every group: who made it, and whether that actor is dead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


def sweep_orphans() -> int:
    """Free the groups of this job whose controller is dead; how many."""
    return _remove(group for group in _groups() if group.creator_actor_dead)


@contextlib.contextmanager
def swept(every: float = 1.0) -> Iterator[None]:
    """While it is open, the workers of trials that were stopped are freed."""
    stop = threading.Event()

    def sweep() -> None:
        while not stop.wait(every):
            sweep_orphans()

    thread = threading.Thread(target=sweep, name="kdray-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def sweep_own() -> int:
    """Free the groups whose controller this process has started, dead or alive; their workers end with them."""
    import ray

    me = ray.get_runtime_context().get_worker_id()
    return _remove(g for g in _groups() if g.creator_actor_dead or _owner(g.creator_actor_id) == me)


def _groups() -> Iterator:
    """GCS's records of the groups that actors of this job have made and that are not removed."""
    import ray
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Group

    if ray.util.client.ray.is_connected():
        return  # over ray:// the control store cannot be read
    job = ray.get_runtime_context().get_job_id()
    for raw in _store().get_placement_group_table():
        group = Group.FromString(raw)
        if group.creator_actor_id.strip(b"\xff") and group.state != Group.REMOVED and group.creator_job_id.hex() == job:
            yield group


def _owner(actor: bytes) -> str:
    """The process that has started an actor; "" where it is not known any more."""
    from ray._raylet import ActorID
    from ray.core.generated.gcs_pb2 import ActorTableData

    raw = _store().get_actor_info(ActorID(actor))
    return ActorTableData.FromString(raw).owner_address.worker_id.hex() if raw else ""


def _store():
    from ray._private.state import state

    return state._connect_and_get_accessor()


def _remove(groups: Iterator) -> int:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    ids = [group.placement_group_id for group in groups]
    for each in ids:
        remove_placement_group(PlacementGroup(PlacementGroupID(each)))
    return len(ids)
