"""The rows of a run as TensorBoard curves."""

from __future__ import annotations

from pathlib import Path

from ..tracker import Tracker


class TensorBoard(Tracker):
    """Writes to the folder `tensorboard` of the run. Curves before the first row that it is told are kept."""

    writer = None

    def row(self, row: dict) -> None:
        numbers = self.scalars(row)
        if not numbers:
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(Path(self.run["path"], "tensorboard")), purge_step=row["step"])
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, row["step"])
        if row["kind"] != "step":
            self.writer.flush()

    def close(self, state: str) -> None:
        if self.writer:
            self.writer.close()
