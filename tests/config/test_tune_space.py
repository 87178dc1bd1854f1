"""The section tune of a config: what is wrong with a search is told before its first trial, at its place in a file."""

import json

import pytest

from kdray.config.dump import to_yaml
from kdray.config.load import digest, load_text
from kdray.config.space import decode, put
from kdray.errors import ConfigError

SPACE = """
tune:
  searcher: random
  space:
    losses.crd.temperature: {loguniform: [0.03, 0.3]}
    losses.crd.dim: {logint: [16, 256]}
    optimizer.lr: {uniform: [0.01, 0.5]}
    losses.crd.negatives: {choice: [{kind: bank, count: 64}, {kind: queue, length: 32}]}
  trials: 8
"""


def test_a_search_is_loaded_and_does_not_change_what_a_run_is(load, valid, registry):
    plain, found = load(valid).config, load(valid + SPACE).config
    assert list(found.tune.space) == [
        "losses.crd.temperature",
        "losses.crd.dim",
        "optimizer.lr",
        "losses.crd.negatives",
    ]
    assert (found.tune.count, found.tune.stops, found.tune.metrics) == (8, "asha", ["validation/top1"])
    assert digest(found) == digest(plain)
    assert "tune" not in to_yaml(plain)
    assert load_text(to_yaml(found), "again", registry).config == found


def test_every_end_and_every_choice_is_looked_at(errors, valid):
    space = """
tune:
  space:
    losses.crd.temperature: {uniform: [0.0, 0.3]}
    losses.crd.dim: {choice: [16, wide]}
    optimizer.lr: {uniform: [-1.0, 0.5]}
    losses.kd.temperatur: {uniform: [1.0, 2.0]}
    optimizer.momentum: {uniform: [0.5, 0.9]}
    student.widths: {choice: [[1], [2]]}
"""
    start = valid.count("\n")
    lines = errors(valid + space)
    assert lines == [
        f"c.yaml:{start + 4}:40: tune.space.losses.crd.temperature.uniform.0: must be greater than 0, not 0.0",
        f"c.yaml:{start + 5}:35: tune.space.losses.crd.dim.choice.1: must be a whole number, not the text 'wide'",
        f"c.yaml:{start + 6}:30: tune.space.optimizer.lr.uniform.0: must be greater than 0, not -1.0",
        f"c.yaml:{start + 7}:5: tune.space.losses.kd.temperatur: unknown key 'temperatur'. Did you mean 'temperature'?",
        f"c.yaml:{start + 9}:5: tune.space.student.widths: unknown key 'widths'. Did you mean 'weights'?",
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tune.space={run.dir: {choice: [a, b]}}", "run cannot be searched: it names folders."),
        ("tune.space={scale.num_workers: {int: [1, 2]}}", "write tune.trial_workers"),
        ("tune.space={data.augment.0: {choice: [crop]}}", "data.augment is a list, of which a whole is drawn"),
        ("tune.space={lr: {uniform: [0.1, 0.2]}}", "unknown key 'lr'"),
        ("tune.space={optimizer.lr: {uniform: [0.2, 0.1]}}", "the first number must be the smaller one"),
        ("tune.space={optimizer.lr: {loguniform: [0.0, 0.1]}}", "must be greater than 0"),
        ("tune.space={optimizer.lr: {int: [0.5, 2]}}", "must be a whole number, not 0.5"),
        ("tune.space={optimizer.lr: {}}", "give one of uniform, loguniform, int, logint, choice, grid"),
        ("tune.space={optimizer.lr: {unifrom: [0.1, 0.2]}}", "unknown key 'unifrom'. Did you mean 'uniform'?"),
        ("tune.space={optimizer.lr: {grid: [0.1, 0.2]}}", "grid belongs to searcher: grid; for random write `choice"),
        ("tune.space={optimizer.lr: {uniform: [0.1, 0.2], when: {seed: 1}}}", "`when` needs searcher: optuna"),
        ("tune={searcher: grid, space: {optimizer.lr: {uniform: [0.1, 0.2]}}}", "write `grid: […]`, not uniform"),
        ("tune={searcher: grid, trials: 3}", "a grid has as many as there are combinations"),
        ("tune={searcher: pbt, space: {student.model: {choice: [a, b]}}}", "changes values of a trial that has begun"),
        ("tune={searcher: pbt, scheduler: asha}", "pbt stops no trials"),
        ("tune={metric: [validation/top1, parameters]}", "compares one metric; optuna takes several"),
        ("tune={metric: test/top1}", "must be 'validation/top1'"),
        ("tune={scheduler: median, reduction: 4}", "reduction has no effect without scheduler: asha"),
        ("tune.trials=0", "must be at least 1"),
        ("tune.trails=3", "unknown key 'trails'. Did you mean 'trials'?"),
    ],
)
def test_searches_that_cannot_be(errors, valid, override, told):
    (line,) = errors(valid + "tune: {}\n", override)
    assert told in line


def test_a_condition_names_a_choice_above(load, errors, valid):
    space = """
tune:
  searcher: optuna
  space:
    optimizer.name: {choice: [sgd, adamw]}
    optimizer.momentum: {uniform: [0.5, 0.9], when: {optimizer.name: sgd}}
"""
    load(valid + space)
    (line,) = errors(valid + space.replace("{optimizer.name: sgd}", "{optimizer.name: lion}"))
    assert "when: optimizer.name must be a `choice` above this entry" in line


def test_what_was_drawn_becomes_a_config(load, valid):
    tune = load(valid + SPACE).config.tune
    queue = {"kind": "queue", "length": 32}
    drawn = {"losses.crd.temperature": 0.1, "losses.crd.negatives": json.dumps(queue)}
    assert decode(tune, drawn) == {"losses.crd.temperature": 0.1, "losses.crd.negatives": queue}
    config = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert put(config, {"a.c.d": 5, "x.y": 6, "a.b": [7]}) == {"a": {"b": [7], "c": {"d": 5}}, "e": 3, "x": {"y": 6}}
    assert config == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_the_plain_values_must_be_right_too(valid, load):
    with pytest.raises(ConfigError, match="seed: must be at least 0"):
        load(valid + SPACE, "seed=-1")
