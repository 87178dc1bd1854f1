"""Memory of the CPU: freed activations stay with the process instead of going back to the system at every step, and lie
in huge pages."""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt's parameters (malloc.h), and its largest value.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, LARGEST = -1, -2, -3, 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks: a step allocates the same ones as the step before, and mapping them anew costs
    a page fault for every 4 KiB, about a tenth of a small network's step. Tensors ask for huge pages, unless the
    environment says otherwise: torch looks there at its first tensor, so this is to be called before. Elsewhere than
    on glibc nothing is done."""
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, LARGEST), (TOP_PAD, 64 << 20)):
            mallopt(parameter, value)
