"""An ONNX file in int8: weights and activations in 8 bits, their ranges seen on training pictures, or learnt with.

onnxruntime's static quantisation. What PyTorch has for it (torchao's PT2E) makes files that torch runs slower than fp32
unless inductor compiles them, and that was not to be relied on: docs/export.md has what was measured.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Config
from ..data.build import Data
from ..data.feed import Feed

CALIBRATION = 512
"""Training pictures at most that the ranges are seen on."""
BATCH = 32
Ranges = dict[str, tuple[float, float]]
"""Lowest and highest number that a layer reads, by its path in the file."""


def quantise(file: Path, data: Data, config: Config, out: Path, ranges: Ranges) -> int:
    """Write the fp32 ONNX `file` in int8 to `out`. ranges: those of the inputs of layers that were trained with
    rounding. Returns how many training pictures the others were seen on."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = calibration(data, config)

        def get_next(self) -> dict | None:
            return next(({"pictures": batch.numpy()} for batch in self.batches), None)

    log, before = logging.getLogger(), logging.getLogger().level
    with TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        log.setLevel(logging.ERROR)  # it advises what is done here already
        try:
            quant_pre_process(str(file), str(folded))
            quantize_static(
                str(folded),
                str(out),
                Reader(),
                # Unsigned both: signed weights of 8 bits overflow on x86 processors without VNNI.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QUInt8,
                per_channel=True,
                nodes_to_exclude=_normalisation(onnx.load(folded).graph),
                # Logits stay fp32: 256 levels would make equals of classes.
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                    "TensorQuantOverrides": _overrides(onnx.load(file).graph, ranges),
                },
            )
        finally:
            log.setLevel(before)
    return min(CALIBRATION, len(data.train))


def calibration(data: Data, config: Config) -> Iterator[Tensor]:
    """Training pictures, uint8 (B, C, H, W), as evaluation would see them: evenly over the set, which may be in the
    order of its classes."""
    number = min(CALIBRATION, len(data.train))
    positions = torch.arange(number) * len(data.train) // number
    feed = Feed(data.train, data.evaluate, config.data.threads, torch.device("cpu"))
    yield from feed.batches(positions.split(BATCH), view=0)


def _overrides(graph, ranges: Ranges) -> dict[str, list[dict]]:
    """By name of the tensor that a layer reads."""
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and (known := ranges.get(_module(node))):
            found[node.input[0]] = [{"rmin": np.float32(known[0]), "rmax": np.float32(known[1])}]
    return found


def _module(node) -> str:
    """The path of the layer that a node is: its weight has the name, or torch's exporter has noted where it is from."""
    name, _, kind = node.input[1].rpartition(".")
    if kind == "weight":
        return name
    noted = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(noted.get("pkg.torch.onnx.name_scopes", "[]"))  # the outermost module … the operator
    return scopes[-2] if len(scopes) > 1 else ""


def _normalisation(graph) -> list[str]:
    """The nodes before the first layer: rounded once, at that layer's input, and not after each of them."""
    found, tensor = [], "pictures"
    while True:
        readers = [node for node in graph.node if tensor in node.input and node.op_type in ("Cast", "Mul", "Add")]
        if len(readers) != 1:
            return found
        found.append(readers[0].name)
        tensor = readers[0].output[0]
