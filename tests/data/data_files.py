"""Small data sets as real files."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(seed: int, height: int = 10, width: int = 10) -> bytes:
    """A PNG of noise: two seeds never give the same picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(file, labels, pictures=None, image="image", label="label", plain=False, kind=None, names=None):
    """kind: the type of the labels; names: those of the classes, as the library `datasets` writes them."""
    pictures = [encode(i) for i in range(len(labels))] if pictures is None else pictures
    column = pa.array(pictures if plain else [{"bytes": p, "path": None} for p in pictures])
    table = pa.table({image: column, label: pa.array(labels, kind or pa.int64())})
    if names:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, file, row_group_size=7)


def write_folder(root, per_class: int, classes=("cat", "dog"), size=lambda i: (10, 10)):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            (root / name / f"{i:03}.png").write_bytes(encode(1000 * c + i, *size(i)))
