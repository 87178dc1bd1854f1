"""`load`: a section `data` of a config to splits, with files under tmp_path."""

import pytest
from data_files import write_parquet

from kdray.config.schema import DataConfig
from kdray.data.build import load_data
from kdray.registry import Registry


@pytest.fixture(scope="session")
def registry():
    return Registry.load()


@pytest.fixture
def load(registry, tmp_path):
    """load_data of a section of a config; files are looked for under tmp_path."""

    def load(seed=0, **section):
        return load_data(DataConfig(**{"batch_size": 4} | section), seed, registry, tmp_path)

    return load


@pytest.fixture
def parquet(tmp_path):
    """24 training and 8 test pictures of 4 classes, where `load(name="parquet")` looks."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    write_parquet(folder / "train.parquet", [i % 4 for i in range(24)])
    write_parquet(folder / "test.parquet", [i % 4 for i in range(8)])
    return folder
