"""What the answers of a cache depend on, and how two of these differ, in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

NAMES = {
    "teacher.model": "network",
    "teacher.options": "the network's options",
    "teacher.weights": "weights of the teacher (SHA-256)",
    "teacher.normalize": "normalisation",
    "teacher.precision": "arithmetic",
    "data.fingerprint": "data (fingerprint)",
    "data.samples": "samples",
    "pictures.pages": "pages",
    "pictures.augmentation": "augmentation",
    "pictures.seeds": "seeds of the views",
    "stored.dtype": "dtype",
    "stored.top_k": "top_k",
}


class _Teacher(BaseModel):
    model: str
    options: dict
    weights: str
    normalize: list
    precision: str


class _Data(BaseModel):
    fingerprint: str
    samples: int


class _Pictures(BaseModel):
    pages: str
    augmentation: list[tuple[str, int, dict]]


class _Stored(BaseModel):
    dtype: str
    top_k: int | None


class _Accuracy(BaseModel):
    top1: float


class _Form(BaseModel):
    """What every reader of a manifest relies on; there may be more."""

    model_config = ConfigDict(strict=True)
    teacher: _Teacher
    data: _Data
    pictures: _Pictures
    stored: _Stored
    accuracy: _Accuracy


def misshapen(identity: Any, accuracy: Any) -> str:
    """What a manifest lacks; "" where it has the form that kdray writes."""
    if not isinstance(identity, dict) or not all(isinstance(section, dict) for section in identity.values()):
        return "identity is no mapping of mappings"
    try:
        _Form.model_validate_json(json.dumps({**identity, "accuracy": accuracy}))
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return ""


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a network's state."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.flatten().numpy().data)
    return digest.hexdigest()


def short(identity: dict) -> str:
    """Eight letters that stand for it, for names."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def differences(there: dict, asked: dict) -> list[str]:
    """A line for each field in which a cache differs from what is asked for, both sides shown."""
    there, asked = dict(_flat(there)), dict(_flat(asked))
    return [
        f"  {NAMES.get(key, key)}: the cache has {_words(key, there.get(key))}; asked for is "
        f"{_words(key, asked.get(key))}"
        for key in sorted(there.keys() | asked.keys(), key=lambda key: (*NAMES, key).index(key))
        if there.get(key) != asked.get(key)
    ]


def _flat(identity: dict) -> Iterator[tuple[str, Any]]:
    for section, fields in identity.items():
        for key, value in fields.items():
            yield f"{section}.{key}", value


def _words(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key in ("teacher.weights", "data.fingerprint"):
        return f"{value[:12]}…"
    if key == "pictures.augmentation":
        return augmentation(value)
    return str(value)


def augmentation(steps: list) -> str:
    """The steps of a pipeline, in words."""
    return ", ".join(_step(*step) for step in steps) or "none"


def _step(name: str, version: int, options: dict) -> str:
    given = ", ".join(f"{k}: {v}" for k, v in options.items())
    return f"{name}{f' {{{given}}}' if given else ''}{f' (version {version})' if version != 1 else ''}"
