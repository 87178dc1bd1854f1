"""Workers joined by torch.distributed, forked from a process that has imported what they need: once, not in each."""

import multiprocessing

import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["torch", "kdray.engine.train"])


def spawn(work, args: tuple, workers: int) -> None:
    """work(rank, *args) in each of them, to the end; raises what one of them raises."""
    mp.start_processes(work, args, nprocs=workers, start_method="forkserver")
