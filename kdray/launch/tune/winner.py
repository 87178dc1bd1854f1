"""The winner of a search as a config, `best.yaml`."""

from __future__ import annotations

from pathlib import Path

from ...config.load import load_config
from ...config.schema import Config
from ...config.tune import TuneConfig
from ...registry import Registry
from ...run.folder import RunFolder
from ...run.search import Trial


def best_config(best: Trial, base: Config, registry: Registry) -> Config:
    """The winner's config as an ordinary one, with the workers that its trial had."""
    found = load_config(Path(best.path) / "config.yaml", registry=registry).config
    return found.model_copy(
        update={
            "name": f"{base.name[:95]}-best",
            "run": base.run.model_copy(update={"name": None}),
            "trackers": base.trackers,
            "checkpoint": base.checkpoint,
            "baseline": base.baseline,
        }
    )


def heading(run: RunFolder, best: Trial, settings: TuneConfig) -> str:
    got = ", ".join(f"{metric} {best.metrics[metric]:.6g}" for metric in settings.metrics)
    lines = [f"# Trial {best.number} of the search {run.name}: {got} after {best.epochs} epochs."]
    if settings.searcher == "pbt":
        lines.append(
            f"# These are the values it ended with; it has had others before (trials/{best.number:03}/values.json)."
        )
    return "\n".join(lines) + "\n"
