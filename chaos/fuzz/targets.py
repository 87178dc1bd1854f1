"""All kinds of files that are fuzzed."""

from . import cache, checkpoints, config, runs

TARGETS = [*config.TARGETS, *cache.TARGETS, *checkpoints.TARGETS, *runs.TARGETS]
