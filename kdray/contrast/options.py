"""The `negatives:` of a contrastive loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..options import Options


class MemoryOptions(Options):
    momentum: float = Field(0.5, ge=0, lt=1, description="Share of the old vector when a sample's row is written.")
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="How the rows are kept: bf16 takes half the room; for a momentum of 0.9 at most, since smaller "
        "moves are lost in its rounding.",
    )


class BankOptions(MemoryOptions):
    kind: Literal["bank"] = Field("bank", description="A memory of every training sample, of which some are drawn.")
    count: int = Field(
        16384,
        gt=0,
        description="K: negatives drawn for each sample; with replacement where other classes have fewer samples.",
    )
    mode: Literal["exact", "relax"] = Field(
        "exact", description="exact: the positive is the sample itself. relax: any sample of its class."
    )


class SharedOptions(MemoryOptions):
    kind: Literal["shared"] = Field(
        "shared",
        description="The same memory, of which one draw serves the whole batch; each anchor leaves its own class out.",
    )
    count: int = Field(16384, gt=0, description="K: samples drawn for the batch, without replacement.")


class AllOptions(MemoryOptions):
    kind: Literal["all"] = Field("all", description="The same memory without a draw: every sample of another class.")


_OTHER = "Whose rows repel. class: those of other classes. sample: of all other samples, also of the same class."


class QueueOptions(Options):
    kind: Literal["queue"] = Field("queue", description="The last embeddings, first in, first out.")
    count: int = Field(16384, gt=0, description="K: length of the queue.")
    other: Literal["class", "sample"] = Field("class", description=_OTHER)


class BatchOptions(Options):
    kind: Literal["batch"] = Field("batch", description="The global batch.")
    other: Literal["class", "sample"] = Field("class", description=_OTHER)


Negatives = BankOptions | SharedOptions | AllOptions | QueueOptions | BatchOptions
