"""Pictures in Parquet files, in the layout of Hugging Face data sets: a column of encoded pictures, one of labels.

The encoded pictures are held in memory: Parquet cannot be read row by row in random order.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from ..errors import ConfigError
from ..options import Options
from .source import Encoded

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetOptions(Options):
    image: str = Field("image", description="Column of the pictures: a struct with `bytes`, or plain bytes.")
    label: str = Field("label", description="Column of the classes, integers from 0.")
    train: str = Field("train.parquet", description="File of the training set, or a pattern: data/train-*.parquet.")
    test: str = Field("test.parquet", description="File of the test set, or a pattern.")
    channels: Literal[3, 1] = Field(3, description="Decode as RGB (3) or in grey (1).")


class Parquet(Encoded):
    """files: in order; labels (N,) and class_names as in `Source`."""

    def __init__(self, files: list[Path], column: str, labels: torch.Tensor, class_names: list[str], channels: int):
        import pyarrow as pa

        super().__init__(labels, class_names, channels)
        self.files = files
        columns = [_pictures(file, column) for file in files]
        self.ends = list(accumulate(len(column) for column in columns))
        self.column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.large_binary())

    def raw(self, position: int) -> bytes:
        return self.column[position].as_py()

    def where(self, position: int) -> str:
        file = bisect_right(self.ends, position)
        return f"row {position - (self.ends[file - 1] if file else 0)} of {self.files[file]}"

    def listing(self):
        import pyarrow.compute as pc

        return map(str, pc.binary_length(self.column).to_pylist())


def load(options: ParquetOptions, path: Path, split: str) -> Parquet:
    """The classes are those of the training set, named in the metadata that Hugging Face writes, else by number.

    Raises FileNotFoundError for missing files, ConfigError for what is wrong inside them.
    """
    files = {name: _files(path, getattr(options, name)) for name in {"train", split}}
    for file in files[split]:
        _check_columns(file, options)
    _check_memory(files[split], options.image)
    labels = {name: [_labels(file, options) for file in files[name]] for name in files}
    names = _class_names(files["train"][0], options.label)
    if names is None:
        present = set().union(*(part.tolist() for part in labels["train"]))
        names = [str(label) for label in range(max(present, default=-1) + 1)]
        if missing := sorted(set(range(len(names))) - present):
            raise ConfigError(
                f"{files['train'][0]}: labels must be 0..{len(names) - 1} without gaps, but no training picture has the "
                f"label {', '.join(map(str, missing[:10]))}. Number the classes from 0."
            )
    for file, part in zip(files[split], labels[split]):
        for row in (part >= len(names)).nonzero()[:1, 0].tolist():
            raise ConfigError(
                f"row {row} of {file}: label {part[row]}, but the training set has the classes 0..{len(names) - 1}"
            )
        if _class_names(file, options.label) not in (None, names):
            raise ConfigError(f"{file} names other classes in column '{options.label}' than {files['train'][0]}")
    return Parquet(files[split], options.image, torch.cat(labels[split]), names, options.channels)


def _files(path: Path, pattern: str) -> list[Path]:
    files = sorted(path.glob(pattern)) if any(mark in pattern for mark in "*?[") else [path / pattern]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"there is no file {path / pattern}")
    return files


def _open(file: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file} cannot be read as Parquet: {error}") from error


def _check_columns(file: Path, options: ParquetOptions) -> None:
    columns = _open(file).schema_arrow.names
    lacking = [f"'{getattr(options, key)}' (data.{key})" for key in ("image", "label") if getattr(options, key) not in columns]
    if lacking:
        raise ConfigError(
            f"{file} has no column {' and no column '.join(lacking)}. Its columns: {', '.join(columns)}. "
            "Name the right ones with data.image and data.label."
        )


def _check_memory(files: list[Path], column: str) -> None:
    needed = 0
    for file in files:
        metadata = _open(file).metadata
        groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
        chunks = (group.column(c) for group in groups for c in range(group.num_columns))
        needed += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ConfigError(
            f"{files[0].parent}: the pictures take {needed / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f} GiB "
            "of memory. Parquet is held in memory: unpack the pictures into files, and use the data set 'folder'."
        )


def _column(file: Path, name: str) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        return _open(file).read(columns=[name]).column(name)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file}: column '{name}' cannot be read, the file is damaged: {error}") from error


def _labels(file: Path, options: ParquetOptions) -> torch.Tensor:
    import pyarrow as pa

    _check_columns(file, options)
    column = _column(file, options.label)
    if not pa.types.is_integer(column.type):
        raise ConfigError(f"{file}: column '{options.label}' is of type {column.type}; labels must be integers from 0")
    _refuse_null(file, options.label, column)
    labels = torch.from_numpy(column.to_numpy().astype("int64"))
    for row in (labels < 0).nonzero()[:1, 0].tolist():
        raise ConfigError(f"row {row} of {file}: label {labels[row]}; labels must be integers from 0")
    return labels


def _pictures(file: Path, name: str) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _column(file, name)
    type_ = column.type
    if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ConfigError(f"{file}: column '{name}' is of type {type_}; expected bytes, or a struct with a field `bytes`")
    _refuse_null(file, name, column)
    return column.cast(pa.large_binary())


def _refuse_null(file: Path, name: str, column: pa.ChunkedArray) -> None:
    import pyarrow.compute as pc

    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise ConfigError(f"row {row} of {file}: column '{name}' is empty (null). Fill it in, or take the row out.")


def _class_names(file: Path, label: str) -> list[str] | None:
    """What Hugging Face's `datasets` says of the label column."""
    metadata = (_open(file).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return json.loads(metadata)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
