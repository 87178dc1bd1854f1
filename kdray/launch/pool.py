"""Ray actors that answer: each takes the next piece of work when it is done with one; what a lost one had in hand is
given to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ..errors import KdrayError, RunFailed
from .answering import Answerer, Errand
from .worker import tail

Task = tuple  # (teacher, kind of pictures, keys)


class Worker:
    """The actor. What can fail is not in its constructor: Ray tells less of a failure there."""

    def prepare(self, errand: Errand) -> None:
        import torch

        torch.set_num_threads(errand.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.answerer = Answerer(errand, errand.code.load(), device)

    def call(self, what: str, *arguments):
        return getattr(self.answerer, what)(*arguments)


class Pool:
    def __init__(self, errand: Errand, workers: int, cpus: float, use_gpu: bool, max_failures: int):
        import ray

        self.ray, self.errand, self.max_failures, self.failures = ray, errand, max_failures, 0
        self.actor = ray.remote(num_cpus=cpus, num_gpus=1 if use_gpu else 0, max_restarts=0)(Worker)
        self.workers = [self._hire() for _ in range(workers)]

    def _hire(self):
        worker = self.actor.remote()
        return worker, worker.prepare.remote(self.errand)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_):
        for worker, _ in self.workers:
            self.ray.kill(worker)

    def ask(self, what: str, *arguments):
        """One worker's answer."""
        done = []
        self._work([(what, *arguments)], lambda _, answer: done.append(answer))
        return done[0]

    def compute(self, tasks: Iterable[Task], on_done: Callable[[Task, bool], None]) -> None:
        self._work([("compute", *task) for task in tasks], lambda task, answer: on_done(task[1:], answer))

    def _work(self, tasks: list[Task], on_done: Callable) -> None:
        """Raises a worker's own error, or RunFailed when more than `max_failures` were lost."""
        waiting, idle = deque(tasks), list(self.workers)
        under_way: dict = {}
        while waiting or under_way:
            while waiting and idle:
                entry, task = idle.pop(), waiting.popleft()
                under_way[entry[0].call.remote(*task)] = entry, task
            (done,), _ = self.ray.wait(list(under_way), num_returns=1)
            entry, task = under_way.pop(done)
            try:
                self.ray.get(entry[1])  # what it found wrong while it prepared is told in its own words
                answer = self.ray.get(done)
            except self.ray.exceptions.RayTaskError as error:
                raise own_error(error) from error
            except self.ray.exceptions.RayActorError as error:
                self.failures += 1
                if self.failures > self.max_failures:
                    raise RunFailed(
                        f"workers were lost more often than scale.max_failures ({self.max_failures}) allows; a worker "
                        "that vanishes was killed, often for memory. What is stored stays: the same command goes on."
                    ) from error
                self.workers.remove(entry)
                self.workers.append(self._hire())
                idle.append(self.workers[-1])
                waiting.append(task)
                continue
            idle.append(entry)
            on_done(task, answer)


def own_error(error) -> KdrayError:
    if isinstance(error.cause, KdrayError):
        return error.cause
    return RunFailed(f"a worker failed:\n{tail(str(error))}")
