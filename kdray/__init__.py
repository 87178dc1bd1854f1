"""kdray: distributed knowledge distillation with plugins, on Ray Train.

These are the names that a plugin may use. They are loaded at first use, so that `import kdray` costs nothing.
"""

from importlib import import_module

__version__ = "0.3.0"

_HOME = {
    "hooks": ["hookimpl"],
    "options": ["Options"],
    "specs": [
        "AugmentationSpec",
        "CommandSpec",
        "DatasetSpec",
        "DistillerSpec",
        "Layers",
        "ModelSpec",
        "OptimizerSpec",
        "SearchSpaceSpec",
        "TrackerSpec",
    ],
    "distiller": ["Batch", "Distiller", "Outputs", "Published", "Requires", "Setup", "Shapes", "Stage", "Step"],
    "contrast.options": ["AllOptions", "BankOptions", "BatchOptions", "QueueOptions", "SharedOptions"],
    "contrast.pools": ["negative_pool"],
    "contrast.objectives": ["infonce", "nce", "partition"],
    "contrast.ring": ["Ring"],
    "contrast.slow": ["Slow"],
    "maps": ["MapChoice", "last_maps", "map_connector", "paired_maps", "same_size"],
    "data.source": ["Source"],
    "data.augment": ["Augmentation"],
    "tracker": ["Tracker"],
    "errors": ["ConfigError", "KdrayError", "MismatchError", "PluginError", "RunFailed"],
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'kdray' has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
