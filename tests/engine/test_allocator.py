"""Tensors of the CPU lie in huge pages where the system has them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
from kdray.launch.experiment import Experiment
Experiment(None, None, None, "test")
import torch
x = torch.ones(64 << 20, dtype=torch.uint8)
print(open("/proc/self/smaps_rollup").read())
"""


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="no huge pages on this system")
@pytest.mark.parametrize("given, huge", [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_huge_pages(monkeypatch, given, huge):
    if "[always]" in SETTING.read_text() and not huge:
        pytest.skip("they are everywhere on this system")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    told = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    assert (int(re.search(r"AnonHugePages: +(\d+) kB", told).group(1)) > 32 << 10) is huge
