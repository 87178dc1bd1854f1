import sys
from textwrap import dedent

import pytest

GOOD = '''
from pydantic import Field
from kdray import Distiller, DistillerSpec, Options, hookimpl

class MyOptions(Options):
    scale: float = Field(1.0, description="A factor.")

class My(Distiller):
    """A loss for tests."""
    Options = MyOptions
    def forward(self, student, teacher, batch, step):
        return self.options.scale * student.logits.mean()

@hookimpl
def kdray_distillers():
    return [DistillerSpec("NAME", My)]
'''


@pytest.fixture
def good():
    """good(name): source of a plugin that provides the distiller `name`."""
    return lambda name: GOOD.replace("NAME", name)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(distribution, {entry point: module}, {module: source}, version): lay a distribution out as pip does."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.delenv("KDRAY_BLOCK", raising=False)
    before = set(sys.modules)

    def write(dist, points, modules, version="1.0", entry_points=None):
        for module, source in modules.items():
            file = site / (module.replace(".", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(source))
        info = site / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        lines = "".join(f"{name} = {module}\n" for name, module in points.items())
        (info / "entry_points.txt").write_text(entry_points or f"[kdray]\n{lines}")
        return site

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("fake_", "kdray_local_")):
            del sys.modules[name]
