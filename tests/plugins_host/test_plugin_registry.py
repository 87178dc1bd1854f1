import subprocess
import sys

import pytest

from kdray.errors import ConfigError, PluginError
from kdray.registry import Registry, check_fingerprint


def test_get(install, good):
    install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": good("attention")})
    registry = Registry.load()
    assert registry.get("distillers", "attention") is registry.distillers["attention"]
    with pytest.raises(ConfigError, match=r"unknown distiller 'atention'\. Did you mean 'attention'\?"):
        registry.get("distillers", "atention")
    with pytest.raises(ConfigError, match="unknown data set 'attention'"):
        registry.get("datasets", "attention")


def test_a_broken_plugin_is_mentioned(install):
    install("kdray-bad", {"bad": "fake_bad"}, {"fake_bad": "import no_such_module"}, version="0.2")
    registry = Registry.load()
    with pytest.raises(
        PluginError, match=r"(?s)unknown distiller 'other'.*kdray-bad:bad.*failed to load.*such_module.*fake_bad.py:1"
    ):
        registry.get("distillers", "other")
    with pytest.raises(
        PluginError, match=r"plugin kdray-bad:bad \(kdray-bad 0.2\) failed to load: ModuleNotFoundError"
    ):
        registry.get("distillers", "bad")


def test_a_name_claimed_twice(install, good):
    install(
        "kdray-a",
        {"a": "fake_a"},
        {"fake_a": good("same") + good("a").replace("kdray_distillers", "unused").replace("@hookimpl", "")},
    )
    install("kdray-b", {"b": "fake_b"}, {"fake_b": good("same")}, version="2.0")
    install("kdray-c", {"c": "fake_c"}, {"fake_c": good("free")})
    registry = Registry.load()
    assert "same" not in registry.distillers
    assert registry.get("distillers", "free")
    with pytest.raises(PluginError, match=r"'same' is defined by more than one plugin") as raised:
        registry.get("distillers", "same")
    message = str(raised.value)
    assert "kdray-a:a (kdray-a 1.0)" in message
    assert "kdray-b:b (kdray-b 2.0)" in message
    assert message in registry.conflicts()

    resolved = Registry.load(blocked=["kdray-b"])
    assert resolved.owners["distillers", "same"][0].dist == "kdray-a"
    assert resolved.get("distillers", "same")
    with pytest.raises(ConfigError, match="blocked: kdray-b:b"):
        resolved.get("distillers", "nothing")


def test_equal_processes_agree(install, tmp_path, good):
    install("kdray-bad", {"bad": "fake_bad"}, {"fake_bad": "import no_such_module"})
    (tmp_path / "mine.py").write_text(good("mine"))
    driver = Registry.load(paths=[tmp_path / "mine.py"])
    worker = Registry.load(local_sources=driver.local_sources())
    assert worker.get("distillers", "mine").cls.__module__ == "kdray_local_mine"
    check_fingerprint(driver.fingerprint(), worker.fingerprint())


def test_differences_are_shown_with_both_sides():
    def plugin(name, version="1.0", sha="a" * 64, error=""):
        return {"name": name, "distribution": f"kdray-{name}", "version": version, "sha256": sha, "error": error}

    driver = [
        plugin("same"),
        plugin("old", "0.3"),
        plugin("edited"),
        plugin("gone"),
        plugin("broken"),
        plugin("bad", error="x"),
    ]
    worker = [
        plugin("same"),
        plugin("old", "0.2"),
        plugin("edited", sha="b" * 64),
        plugin("broken", error="ImportError: y"),
    ]
    with pytest.raises(PluginError) as raised:
        check_fingerprint(driver, worker)
    message = str(raised.value)
    assert (
        "kdray-old:old\n    driver: kdray-old 0.3 source aaaaaaaaaaaa\n    worker: kdray-old 0.2 source aaaaaaaaaaaa"
        in message
    )
    assert "driver: kdray-edited 1.0 source aaaaaaaaaaaa\n    worker: kdray-edited 1.0 source bbbbbbbbbbbb" in message
    assert "worker: absent" in message
    assert "worker: failed to load: ImportError: y" in message
    assert "same" not in message.replace("Install the same", "")
    assert "bad" not in message


def test_a_worker_needs_no_file(tmp_path, good):
    """Text and fingerprint, sent to a fresh process in another folder."""
    (tmp_path / "mine.py").write_text(good("mine"))
    driver = Registry.load(paths=[tmp_path / "mine.py"])
    code = (
        "from kdray.registry import Registry, check_fingerprint\n"
        f"registry = Registry.load(local_sources={driver.local_sources()!r})\n"
        f"check_fingerprint({driver.fingerprint()!r}, registry.fingerprint())\n"
        "import pickle; assert pickle.loads(pickle.dumps(registry.get('distillers', 'mine').cls))\n"
    )
    (tmp_path / "mine.py").unlink()
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_host_imports_neither_torch_nor_ray():
    modules = "kdray.hooks, kdray.loader, kdray.registry, kdray.cli.list_, kdray.cli.plugins"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_default_reads_the_project_file_once(tmp_path, good):
    (tmp_path / "mine.py").write_text(good("mine"))
    (tmp_path / "kdray.toml").write_text('[plugins]\nload = ["mine.py"]\nblock = ["kd"]\n')
    code = (
        "from kdray.registry import Registry\nregistry = Registry.default()\n"
        "assert registry is Registry.default() and 'mine' in registry.distillers\n"
        "assert [p.id for p in registry.host.plugins if p.status == 'blocked'] == ['kdray:kd']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
