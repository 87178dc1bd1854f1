"""Parquet files in the layout of Hugging Face: encoded pictures and labels in columns."""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import Field

from ..errors import ConfigError
from ..options import Options
from .decode import decode
from .source import Source


class ParquetOptions(Options):
    image: str = Field(
        "image", description="Column of the encoded pictures: bytes, or a struct with the field `bytes`."
    )
    label: str = Field("label", description="Column of the classes: whole numbers from 0, or texts.")
    train: str = Field("train*.parquet", description="File or pattern of the training set, under data.path.")
    test: str = Field("test*.parquet", description="File or pattern of the test set, under data.path.")
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey.")


class Rows:
    """The rows of several files as one sequence."""

    def __init__(self, files: list[Path], counts: list[int]):
        self.files, self.ends = files, list(accumulate(counts))

    def where(self, position: int) -> str:
        file = bisect_right(self.ends, position)
        return f"row {position - (self.ends[file - 1] if file else 0)} of {self.files[file]}"


class Parquet(Source):
    """Encoded pictures stay in memory as they are in the file: a fraction of what the decoded ones take."""

    def __init__(self, files: list[Path], options: ParquetOptions, labels: torch.Tensor, names: list[str]):
        self.bytes, self.rows = _column(files, options.image, options)
        super().__init__(labels, names, options.channels)

    def read(self, position: int):
        what = f"picture {position} ({self.rows.where(position)})"
        data = self.bytes[position].as_py()
        if data is None:
            raise ConfigError(f"{what} is missing: the cell is empty")
        return decode(data, self.channels, what)


def load(options: ParquetOptions, path: Path, split: str) -> Parquet:
    """The classes are those of the training set: the names that `datasets` wrote into the file, else the labels."""
    files = _files(path, split, getattr(options, split))
    train_files = files if split == "train" else _files(path, "train", options.train)
    column, rows = _column(train_files, options.label, options)
    names = _class_names(train_files[0], options.label) or _names_by_value(column, rows, options.label)
    if split != "train":
        column, rows = _column(files, options.label, options)
        own = _class_names(files[0], options.label)
        if own and own != names:
            raise ConfigError(f"{files[0]} names other classes in column '{options.label}' than {train_files[0]}")
    return Parquet(files, options, _labels(column, rows, options.label, names), names)


def _files(path: Path, split: str, pattern: str) -> list[Path]:
    files = sorted(path.glob(pattern)) if path.is_dir() else []
    if not files:
        raise ConfigError(
            f"no file {path / pattern}: data.path is the folder of the Parquet files, "
            f"data.{split} the name or pattern of the {split} set's"
        )
    return files


def _column(files: list[Path], name: str, options: ParquetOptions) -> tuple[pa.ChunkedArray, Rows]:
    """A column over all files: encoded pictures as bytes, labels as they are."""
    parts = [_read(file, name, options) for file in files]
    kinds = {part.type for part in parts}
    if len(kinds) > 1:
        raise ConfigError(
            f"column '{name}' is not of one type in {files[0].parent}: {' and '.join(sorted(map(str, kinds)))}"
        )
    chunks = [chunk for part in parts for chunk in part.chunks]
    return pa.chunked_array(chunks, type=parts[0].type), Rows(files, [len(part) for part in parts])


def _read(file: Path, name: str, options: ParquetOptions) -> pa.ChunkedArray:
    try:
        known = pq.read_schema(file).names
        for key in ("image", "label"):
            if getattr(options, key) not in known:
                raise ConfigError(
                    f"{file} has no column '{getattr(options, key)}' (data.{key}); it has {', '.join(known)}"
                )
        column = pq.read_table(file, columns=[name]).column(name)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file} cannot be read as Parquet: {error}") from error
    if name != options.image:
        return column.cast(pa.int64()) if pa.types.is_integer(column.type) else column
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ConfigError(
            f"{file}: column '{name}' holds {column.type}, not encoded pictures (bytes, or a struct with bytes)"
        )
    return column.cast(pa.large_binary())


def _values(column: pa.ChunkedArray, rows: Rows, name: str) -> list:
    """Raises ConfigError for a column that cannot be labels."""
    texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not texts and not pa.types.is_integer(column.type):
        raise ConfigError(
            f"column '{name}' of {rows.files[0]} holds {column.type}; labels are whole numbers from 0, or texts"
        )
    if not len(column):
        raise ConfigError(f"column '{name}' is empty: {rows.files[0]} has no rows")
    if column.null_count:
        raise ConfigError(f"{rows.where(pc.index(column.is_null(), True).as_py())}: column '{name}' is empty")
    return column.to_pylist()


def _names_by_value(column: pa.ChunkedArray, rows: Rows, name: str) -> list[str]:
    values = _values(column, rows, name)
    present = sorted(set(values))
    if isinstance(present[0], str):
        return present
    if present[0] < 0:
        raise ConfigError(f"{rows.where(values.index(present[0]))}: label {present[0]}; labels count from 0")
    if present != list(range(len(present))):
        lacking = next(i for i, label in enumerate(present) if i != label)
        raise ConfigError(
            f"column '{name}' of {rows.files[0].parent}: training labels go up to {present[-1]}, "
            f"but none is {lacking}. Number the classes from 0, without gaps"
        )
    return [str(label) for label in present]


def _labels(column: pa.ChunkedArray, rows: Rows, name: str, names: list[str]) -> torch.Tensor:
    values = _values(column, rows, name)
    if isinstance(values[0], str):
        place = {text: i for i, text in enumerate(names)}
        values = [place.get(text, text) for text in values]
    known = range(len(names))
    strange = next((i for i, label in enumerate(values) if label not in known), None)
    if strange is not None:
        raise ConfigError(
            f"{rows.where(strange)}: label {values[strange]} is none of the training set's {len(names)} classes "
            f"({names[0]} … {names[-1]})"
        )
    return torch.tensor(values)


def _class_names(file: Path, label: str) -> list[str] | None:
    """Those that the library `datasets` writes into the file."""
    try:
        return json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
