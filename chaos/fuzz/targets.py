"""All kinds of files that are fuzzed."""

from . import cache, checkpoints, config

TARGETS = [*config.TARGETS, *cache.TARGETS, *checkpoints.TARGETS]
