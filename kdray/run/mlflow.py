"""The rows of a run as metrics of MLflow."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import Field

from ..options import Options
from ..tracker import Tracker
from .folder import read_json, write_json
from .tracking import leaves, need

STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflowOptions(Options):
    uri: str | None = Field(
        None,
        description="Tracking server or database. Default: MLFLOW_TRACKING_URI, else mlflow.db in the folder of runs.",
    )
    experiment: str = Field("kdray", min_length=1, description="Name of the experiment; made where there is none.")


class MLflow(Tracker):
    """The id of MLflow's run is kept in mlflow.json of the run folder, and a resumed run goes on with it."""

    @classmethod
    def check(cls, options: MLflowOptions) -> None:
        need("mlflow")

    def __init__(self, options: MLflowOptions, run: dict):
        from mlflow import MlflowClient

        super().__init__(options, run)
        folder = Path(run["path"])
        uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.parent / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=uri)
        known = read_json(folder / "mlflow.json")
        if known and known["uri"] == uri:
            self.id = known["run"]
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self._new_run()
            write_json(folder / "mlflow.json", {"uri": uri, "run": self.id})

    def _new_run(self) -> str:
        from mlflow.entities import Param

        experiment = self.client.get_experiment_by_name(self.options.experiment)
        place = experiment.experiment_id if experiment else self.client.create_experiment(self.options.experiment)
        made = self.client.create_run(place, run_name=self.run["name"], tags={"kdray.run": self.run["path"]})
        params = [Param(name, str(value)[:500]) for name, value in leaves(self.run["config"])]
        for start in range(0, len(params), 100):  # the largest batch that a server takes
            self.client.log_batch(made.info.run_id, params=params[start : start + 100])
        return made.info.run_id

    def row(self, row: dict) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, row["step"]) for name, value in self.scalars(row).items()]
        if metrics:
            self.client.log_batch(self.id, metrics=metrics)

    def close(self, state: str) -> None:
        self.client.set_terminated(self.id, STATUS[state])
