"""A search in the terms of Ray Tune: what is drawn how, by whom, and when a trial is stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...config.tune import Dimension, TuneConfig, mode
from ...errors import ConfigError

STATE = ".ray"
"""Ray Tune's own folder in that of a search."""

# Ray Tune reads these; what the user has set stays. The state of a search is written down every 2 s.
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tuner(
    trainable: Callable,
    tune_config: TuneConfig,
    seed: int,
    epochs: int,
    folder: Path,
    at_once: int,
    max_failures: int,
    callbacks: list,
):
    """The Tuner of a new search, or of one that goes on, where Ray Tune has begun it. at_once: trials at a time."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    from ray import tune

    state = folder / STATE
    if tune.Tuner.can_restore(str(state)):
        return tune.Tuner.restore(str(state), trainable, resume_unfinished=True)
    space, searcher = _searcher(tune_config, seed)
    is_pbt = tune_config.searcher == "pbt"
    offset = 0 if tune_config.searcher == "optuna" else 1
    name = partial(_name, offset=offset)
    one = len(tune_config.metrics) == 1
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=tune_config.metrics[0] if one and searcher is None else None,
            mode=mode(tune_config.metrics[0]) if one and searcher is None else None,
            search_alg=searcher or tune.search.BasicVariantGenerator(max_concurrent=at_once, random_state=seed),
            scheduler=_scheduler(tune_config, epochs),
            num_samples=1 if tune_config.searcher == "grid" else tune_config.count,
            max_concurrent_trials=at_once if searcher else None,
            reuse_actors=tune_config.trial_workers == 1,
            trial_name_creator=name,
            trial_dirname_creator=name,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=str(folder),
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=max_failures),
            # Fewer would be gone before another trial has taken over from them.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=10 if is_pbt else 1),
        ),
    )


def _name(trial, offset: int) -> str:
    """`003`. Ray's generators number their trials, from 0 or from 1."""
    return f"{int(trial.experiment_tag.split('_')[0]) + offset:03}"


def _searcher(config: TuneConfig, seed: int):
    """The space as Ray Tune has it, and the searcher that draws from it, where that is not Ray Tune itself."""
    if config.searcher == "optuna":
        return {}, _optuna(config, seed)
    return {path: _domain(dimension) for path, dimension in config.space.items()}, None


def _domain(dimension: Dimension):
    from ray import tune

    if dimension.is_discrete:
        words = [json.dumps(value) for value in dimension.values]
        return tune.grid_search(words) if dimension.kind == "grid" else tune.choice(words)
    low, high = dimension.values
    match dimension.kind:
        case "uniform":
            return tune.uniform(low, high)
        case "loguniform":
            return tune.loguniform(low, high)
        case "int":
            return tune.randint(low, high + 1)
        case "logint":
            return tune.lograndint(low, high + 1)


def _optuna(config: TuneConfig, seed: int):
    need_optuna()
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    modes = [mode(metric) for metric in config.metrics]
    several = len(modes) > 1
    return OptunaSearch(
        partial(_suggest, config),
        metric=config.metrics if several else config.metrics[0],
        mode=modes if several else modes[0],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(3, config.count // 4))),
    )


def need_optuna() -> None:
    """Raises ConfigError where it is not installed."""
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("tune.searcher: optuna needs the package optuna: pip install 'kdray[tune]'")


def _suggest(config: TuneConfig, trial) -> None:
    """Draw the values of one trial: an entry with `when` only where its conditions hold."""
    drawn = {}
    for path, dimension in config.space.items():
        if any(drawn.get(other) != json.dumps(value) for other, value in dimension.when.items()):
            continue
        if dimension.is_discrete:
            drawn[path] = trial.suggest_categorical(path, [json.dumps(value) for value in dimension.values])
        elif dimension.is_whole:
            drawn[path] = trial.suggest_int(path, *dimension.values, log=dimension.is_log)
        else:
            drawn[path] = trial.suggest_float(path, *dimension.values, log=dimension.is_log)


def _scheduler(config: TuneConfig, epochs: int):
    from .schedulers import Asha, Fifo, Median, Population

    metric = config.metrics[0]
    judged = {"time_attr": "epoch", "metric": metric, "mode": mode(metric)}
    if config.searcher != "optuna":
        judged = {"time_attr": "epoch"}  # the metric comes from the Tuner
    grace = config.grace or max(1, epochs // 9)
    if config.searcher == "pbt":
        draws = {p: [json.dumps(v) for v in d.values] if d.is_discrete else _domain(d) for p, d in config.space.items()}
        return Population(
            **judged,
            perturbation_interval=config.interval or max(1, epochs // 10),
            hyperparam_mutations=draws,
            custom_explore_fn=partial(_inside, config),
        )
    match config.stops:
        case "asha":
            reduction = config.reduction or 3
            return Asha(**judged, max_t=epochs, grace_period=min(grace, epochs), reduction_factor=reduction)
        case "median":
            return Median(**judged, grace_period=grace, min_samples_required=3)
    return Fifo()


def _inside(config: TuneConfig, drawn: dict) -> dict:
    """Population-based training takes a factor of 0.8 or 1.2 to a value, which may leave the space."""
    for path, dimension in config.space.items():
        if not dimension.is_discrete:
            low, high = dimension.values
            drawn[path] = min(max(drawn[path], low), high)
            if dimension.is_whole:
                drawn[path] = round(drawn[path])
    return drawn
