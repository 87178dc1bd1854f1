"""Parquet files in the layout of Hugging Face: encoded pictures and labels in columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from ..errors import ConfigError
from ..options import Options
from .decode import decode
from .source import Source


class ParquetOptions(Options):
    image: str = Field("image", description="Column of the encoded pictures: bytes, or a struct with the field `bytes`.")
    label: str = Field("label", description="Column of the classes: whole numbers from 0, or texts.")
    train: str = Field("train*.parquet", description="File or pattern of the training set, under data.path.")
    test: str = Field("test*.parquet", description="File or pattern of the test set, under data.path.")
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey.")


class Parquet(Source):
    """Encoded pictures stay in memory as they are in the file: a fraction of what the decoded ones take."""

    def __init__(self, files: list[Path], options: ParquetOptions):
        tables = [_read(file, options) for file in files]
        self.rows = [(file, row) for file, table in zip(files, tables) for row in range(len(table))]
        table = pa.concat_tables(tables)
        column = table[options.image]
        if pa.types.is_struct(column.type):
            column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], type=column.type.field("bytes").type)
        self.bytes = column
        labels, names = _labels(table[options.label], options.label, self.rows, tables[0].schema.metadata)
        super().__init__(labels, names, options.channels)

    def read(self, position: int):
        file, row = self.rows[position]
        what = f"picture {position} (row {row} of {file})"
        data = self.bytes[position].as_py()
        if data is None:
            raise ConfigError(f"{what} is missing: the cell is empty")
        return decode(data, self.channels, what)


def load(options: ParquetOptions, path: Path, split: str) -> Parquet:
    pattern = getattr(options, split)
    files = sorted(path.glob(pattern)) if path.is_dir() else []
    if not files:
        raise ConfigError(
            f"no file {path / pattern}: data.path is the folder of the Parquet files, data.{split} the name or pattern of the {split} set's"
        )
    return Parquet(files, options)


def _read(file: Path, options: ParquetOptions) -> pa.Table:
    try:
        schema = pq.read_schema(file)
        names = schema.names
        for key in ("image", "label"):
            if getattr(options, key) not in names:
                raise ConfigError(f"{file} has no column '{getattr(options, key)}' (data.{key}); it has {', '.join(names)}")
        kind = schema.field(options.image).type
        kind = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ConfigError(f"{file}: column '{options.image}' holds {kind}, not encoded pictures (bytes, or a struct with bytes)")
        return pq.read_table(file, columns=list({options.image: None, options.label: None}))
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file} cannot be read as Parquet: {error}") from error


def _labels(column: pa.ChunkedArray, name: str, rows: list, metadata: dict | None) -> tuple[torch.Tensor, list[str]]:
    values = column.to_pylist()
    if None in values:
        file, row = rows[values.index(None)]
        raise ConfigError(f"row {row} of {file}: column '{name}' is empty")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        names = sorted(set(values))
        place = {text: i for i, text in enumerate(names)}
        return torch.tensor([place[v] for v in values]), names
    if not pa.types.is_integer(column.type):
        raise ConfigError(f"column '{name}' holds {column.type}; labels are whole numbers from 0, or texts")
    if not values:
        raise ConfigError(f"column '{name}' is empty: the Parquet files have no rows")
    labels = torch.tensor(values)
    if labels.min() < 0:
        file, row = rows[int(labels.argmin())]
        raise ConfigError(f"row {row} of {file}: label {int(labels.min())}; labels count from 0")
    return labels, _class_names(metadata, name) or [str(i) for i in range(int(labels.max()) + 1)]


def _class_names(metadata: dict | None, name: str) -> list[str] | None:
    """Those that the library `datasets` writes into the file."""
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"][name]["names"]
    except (KeyError, TypeError, ValueError):
        return None
