"""The rows of a run as TensorBoard curves."""

from __future__ import annotations

from pathlib import Path


class TensorBoard:
    """Writes under `folder`; rows before `purge` (a step) that stand there already are kept."""

    def __init__(self, folder: Path, purge: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge or None)

    def row(self, row: dict) -> None:
        step = row["step"]
        if row["kind"] in ("step", "epoch"):
            for name, value in row["terms"].items():
                self.writer.add_scalar(f"{row['kind']}/{name}", value, step)
        if row["kind"] == "epoch":
            for split in ("validation", "test"):
                for name in ("top1", "top5", "loss") if split in row else ():
                    self.writer.add_scalar(f"{split}/{name}", row[split][name], step)
            for name in ("loss", "lr", "pictures_per_second"):
                self.writer.add_scalar(f"epoch/{name}", row[name], step)
            self.writer.flush()

    def close(self) -> None:
        self.writer.close()
