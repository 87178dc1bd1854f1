"""A teacher as a pool of Ray actors (`teacher.placement`): they make the pictures of a step themselves, from the
numbers of its samples, and answer before the training needs it."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch
from torch import Tensor

from ..config.schema import Config, PlacementConfig, TeacherConfig
from ..data.build import Split
from ..data.feed import Feed
from ..distiller import Outputs
from ..engine.allocator import keep_freed_memory
from ..engine.build import build
from ..engine.context import Context
from ..engine.evaluate import evaluate
from ..errors import ConfigError, RunFailed
from .answering import Errand
from .pool import own_error


class Actor:
    def __init__(self, name: str, errand: Errand):
        self.name, self.errand, self.measured = name, errand, None

    @cached_property
    def parts(self):
        """Not made in the constructor: Ray tells less of a failure there."""
        torch.set_num_threads(self.errand.threads)
        keep_freed_memory()
        registry = self.errand.code.load()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return build(self.errand.config, registry, self.errand.data_root, self.errand.checkpoints, device)

    @cached_property
    def feeds(self) -> dict[str, Feed]:
        parts, threads, source = self.parts, self.errand.config.data.threads, self.parts.data.train.source
        everything, pipelines = Split(source, torch.arange(len(source))), {"": parts.data.augment, **parts.views}
        return {kind: Feed(everything, pipeline, threads, parts.device) for kind, pipeline in pipelines.items()}

    @property
    def teacher(self):
        return self.parts.teachers.by_name[self.name]

    def where(self) -> str:
        """The node that it is on; everything that it needs is there then."""
        import ray

        _ = self.feeds
        return ray.get_runtime_context().get_node_id()

    def answer(self, ids: Tensor, view: int) -> Outputs:
        outputs, *more = (self.teacher(next(feed.batches([ids], view))) for feed in self.feeds.values())
        outputs.views = dict(zip(self.parts.views, more))
        return outputs.map(_packed)

    def accuracy(self) -> dict[str, float]:
        if self.measured is None:
            data, parts = self.parts.data, self.parts
            feed = Feed(data.test, data.evaluate, self.errand.config.data.threads, parts.device)
            self.measured = evaluate(lambda x: self.teacher(x).logits, data.test, feed, Context(device=parts.device))
        return self.measured


class TeacherPool:
    """Its actors live as long as it is open; one that dies is started again, and asked again what it was asked."""

    def __init__(self, name: str, placement: PlacementConfig, errand: Errand, max_failures: int):
        import ray

        self.ray, self.held = ray, held_by(placement)
        self.names = tuple(f"kdray-{uuid.uuid4().hex}-{name}-{i}" for i in range(placement.workers))
        actor = ray.remote(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            resources=dict(placement.resources),
            max_restarts=max_failures,
            max_task_retries=-1,
        )(Actor)
        self.actors = [actor.options(name=each).remote(name, errand) for each in self.names]

    def __enter__(self) -> TeacherPool:
        try:
            self.nodes = _get([actor.where.remote() for actor in self.actors])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for actor in self.actors:
            self.ray.kill(actor)

    def taken(self) -> list[tuple[str, dict[str, float]]]:
        """What its actors hold, and of which node."""
        return [(node, self.held) for node in self.nodes]


def placed_teachers(config: Config, caches: Collection[str] = ()) -> dict[str, TeacherConfig]:
    """Those of the config that are to answer in actors, without those that have a cache."""
    return {name: t for name, t in config.all_teachers.items() if t.placement and name not in caches}


def held_by(placement: PlacementConfig) -> dict[str, float]:
    """What an actor takes of its node."""
    return {"CPU": placement.cpus, "GPU": placement.gpus, **placement.resources}


def place(name: str, placement: PlacementConfig, nodes: list[dict[str, float]]) -> list[dict[str, float]]:
    """What is left of the nodes when the actors stand on them. Raises ConfigError where they do not fit."""
    left, held = [dict(node) for node in nodes], held_by(placement)
    for number in range(placement.workers):
        node = next((n for n in left if all(n.get(k, 0) >= v - 1e-9 for k, v in held.items())), None)
        if node is None:
            each = ", ".join(f"{v:g} {k}" for k, v in held.items() if v)
            raise ConfigError(
                f"{name}.placement: {placement.workers} actors of {each} each do not fit: the cluster has room for "
                f"{number}. Ask for fewer, or start nodes that have these"
            )
        for key, value in held.items():
            node[key] = node.get(key, 0) - value
    return left


@dataclass(frozen=True)
class AskingPool:
    """`kdray.teacher.placed.Asking`, for a worker of the same Ray job: the actors take turns."""

    names: tuple[str, ...]
    ahead: int

    @cached_property
    def _actors(self) -> list:
        import ray

        return [ray.get_actor(name) for name in self.names]

    @cached_property
    def _turn(self):
        return count()

    def ask(self, ids: Tensor, view: int):
        actors = self._actors
        return actors[next(self._turn) % len(actors)].answer.remote(ids, view)

    def answer(self, promise) -> Outputs:
        return _get(promise).map(_unpacked)

    def accuracy(self) -> dict[str, float]:
        return _get(self._actors[0].accuracy.remote())


def _get(promise):
    """Raises the actor's own error, or RunFailed when it was lost for good."""
    import ray

    try:
        return ray.get(promise)
    except ray.exceptions.RayTaskError as error:
        raise own_error(error) from error
    except ray.exceptions.RayActorError as error:
        raise RunFailed(
            "an actor of teacher.placement was lost more often than scale.max_failures allows. One that vanishes was "
            "killed, often for memory: give it fewer neighbours, or more nodes. `kdray resume` goes on."
        ) from error


def _packed(x: Tensor):
    """As Ray sends it without a copy; maps in the order in which they lie in memory."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous().cpu().numpy()


def _unpacked(x) -> Tensor:
    found = torch.from_numpy(x.copy())  # what Ray hands out must not be written
    return found.permute(0, 3, 1, 2) if found.dim() == 4 else found
