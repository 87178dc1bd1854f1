"""The rows of a run as curves of Weights & Biases."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..errors import ConfigError
from ..options import Options
from ..tracker import Tracker
from .folder import read_json, write_json
from .tracking import need


class WandbOptions(Options):
    project: str = Field("kdray", min_length=1, description="Name of the project.")
    entity: str | None = Field(None, description="User or team. Default: that of your account.")
    mode: Literal["offline", "online"] = Field(
        "offline", description="offline: kept in the run folder for `wandb sync`; online: sent as it happens."
    )


class Wandb(Tracker):
    """The id of the run is kept in wandb.json of the run folder, and a resumed run goes on with it."""

    @classmethod
    def check(cls, options: WandbOptions) -> None:
        need("wandb")
        if options.mode == "online":
            import wandb

            # Asked here, without a prompt: one in the middle of a run would wait for an answer for ever.
            if not wandb.login(prompt=False, verify=False):
                raise ConfigError(
                    "the tracker wandb has no account here: run `wandb login`, or give it `mode: offline`"
                )

    def __init__(self, options: WandbOptions, run: dict):
        import wandb

        super().__init__(options, run)
        folder = Path(run["path"])
        known = read_json(folder / "wandb.json") or {"run": uuid.uuid4().hex[:8]}
        self.wandb = wandb.init(
            id=known["run"],
            resume="allow",
            reinit="create_new",
            project=options.project,
            entity=options.entity,
            name=run["name"],
            config=run["config"],
            dir=str(folder),
            mode=options.mode,
            settings=wandb.Settings(console="off", quiet=True),
        )
        write_json(folder / "wandb.json", known)
        # Steps that come again after a restart would be dropped by W&B's own counter, which only rises.
        self.wandb.define_metric("*", step_metric="step")

    def row(self, row: dict) -> None:
        numbers = self.scalars(row)
        if numbers:
            self.wandb.log({**numbers, "step": row["step"]})

    def close(self, state: str) -> None:
        self.wandb.finish(exit_code=0 if state == "finished" else 1)
