"""Files of a student, and back: each format writes a network with its facts into one file, and reads both again.

The facts (JSON) say what goes in and comes out: `classes`, `input`, `evaluate` (what is done to a picture before),
`network`, `accuracy`, `run`, `kdray`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config.schema import StudentConfig
from ..data.normalize import Normalize
from ..errors import ConfigError
from ..models.build import build_model
from ..models.rounding import set_rounding
from ..registry import Registry
from .deployable import Deployable

FACTS = "kdray.json"
Runs = Callable[[Tensor], Tensor]
"""uint8 pictures (B, C, H, W) to logits (B, classes)."""


@dataclass(frozen=True)
class Format:
    """write(network, example (B, C, H, W) uint8, facts, file); read(file) to what runs, and the facts."""

    suffix: str
    write: Callable[[nn.Module, Tensor, dict, Path], None]
    read: Callable[[Path], tuple[Runs, dict]]
    needs: tuple[str, ...] = ()
    """Packages beyond kdray's own."""

    def check(self, name: str) -> None:
        """Raises ConfigError where a package is not installed."""
        if missing := [package for package in self.needs if find_spec(package) is None]:
            raise ConfigError(
                f"{name} needs {' and '.join(missing)}: pip install 'kdray[{name}]', or pip install {' '.join(missing)}"
            )


def _batch_is_free() -> tuple:
    return ({0: torch.export.Dim("batch", min=1, max=1 << 20)},)


def _write_export(network: nn.Module, example: Tensor, facts: dict, file: Path) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=_batch_is_free())
    with warnings.catch_warnings():  # that weights may not be on the CPU; they are
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})


def _read_export(file: Path) -> tuple[Runs, dict]:
    extra = {FACTS: ""}
    module = torch.export.load(file, extra_files=extra).module()
    return module, json.loads(extra[FACTS])


def _write_onnx(network: nn.Module, example: Tensor, facts: dict, file: Path) -> None:
    names = {"input_names": ["pictures"], "output_names": ["logits"]}
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=_batch_is_free(), verbose=False, **names
    )
    program.save(file, external_data=False)
    name_facts(file, facts)


def name_facts(file: Path, facts: dict) -> None:
    """Write them into an ONNX file, in the place of others."""
    import onnx

    model = onnx.load(file)
    onnx.helper.set_model_props(model, {FACTS: json.dumps(facts)})
    onnx.save(model, file)


def _read_onnx(file: Path) -> tuple[Runs, dict]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map[FACTS])
    return lambda pictures: torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0]), facts


def _write_weights(network: nn.Module, example: Tensor, facts: dict, file: Path) -> None:
    torch.save({"state_dict": network.state_dict(), FACTS: json.dumps(facts)}, file)


def _read_weights(file: Path) -> tuple[Runs, dict]:
    found = torch.load(file, weights_only=True)
    facts = json.loads(found[FACTS])
    channels = facts["input"]["shape"][1]
    built = build_model(StudentConfig(**facts["network"]), Registry.default(), len(facts["classes"]), channels)
    if "int8" in facts["network"]:
        set_rounding(built.model)
    network = Deployable(built.model, Normalize([0.0] * channels, [1.0] * channels))
    network.load_state_dict(found["state_dict"])
    return network, facts


FORMATS = {
    "pytorch": Format(".pt", _write_weights, _read_weights),
    "torch.export": Format(".pt2", _write_export, _read_export),
    "onnx": Format(".onnx", _write_onnx, _read_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
}


def read(file: Path) -> tuple[Runs, dict]:
    """Of a file that `kdray export` wrote. Raises ConfigError for another one."""
    for name, format in FORMATS.items():
        if file.suffix == format.suffix:
            format.check(name)
            try:
                return format.read(file)
            except Exception as error:  # the readers of broken files raise whatever they stumble over
                raise ConfigError(
                    f"{file} cannot be read as {name}, or is not of `kdray export` ({type(error).__name__}: {error})"
                ) from error
    raise ConfigError(f"{file}: what can be read is {', '.join(format.suffix for format in FORMATS.values())}")
