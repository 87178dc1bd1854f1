# ruff: noqa: E501 (the table of broken plugins reads best with a line a case)
import pytest

from kdray.loader import load_plugins


def one(host, dist):
    (info,) = [info for info in host.plugins if info.dist == dist]
    return info


def test_a_good_plugin_is_loaded(install, good):
    site = install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": good("foo")}, version="0.3")
    host = load_plugins()
    info = one(host, "kdray-foo")
    assert (info.status, info.name, info.version, info.phase, info.error) == ("loaded", "foo", "0.3", "", "")
    assert info.source_path == str(site / "fake_foo.py")
    assert len(info.sha256) == 64
    assert info.hooks == ["kdray_distillers"]
    assert list(info.specs["distillers"]) == ["foo"]
    assert host.manager.has_plugin("kdray-foo:foo")


IMPORTS = "from kdray import AugmentationSpec, DatasetSpec, Distiller, DistillerSpec, ModelSpec, OptimizerSpec, Options, hookimpl\n"


def broken(body, hook="kdray_distillers"):
    """A plugin whose registration hook runs `body`."""
    return (
        IMPORTS
        + "from pydantic import Field\n"
        + body
        + ("" if hook is None else f"\n@hookimpl\ndef {hook}():\n    return SPECS\n")
    )


DISTILLER = "class My(Distiller):\n    {body}\nSPECS = [DistillerSpec('my', My)]"
FORWARD = "def forward(self, student, teacher, batch, step): return student.logits.mean()"
OPTIONS = (
    "class O(Options):\n    {field}\nclass My(Distiller):\n    Options = O\n    "
    + FORWARD
    + "\nSPECS = [DistillerSpec('my', My)]"
)

BROKEN = {
    "import error": ("import no_such_module", "import", ["ModuleNotFoundError: No module named 'no_such_module'", "fake_bad.py:1"]),
    "syntax error": ("def f(:", "import", ["SyntaxError", "fake_bad.py"]),
    "exits": ("import sys\nsys.exit(3)", "import", ["SystemExit: 3", "fake_bad.py:2"]),
    "no hooks": ("x = 1", "check", ["no hooks", "@hookimpl", "kdray_distillers"]),
    "not marked": ("def kdray_models(): return []", "check", ["kdray_models() is not marked", "@hookimpl"]),
    "unknown hook": ("from kdray import hookimpl\n@hookimpl\ndef kdray_distiller(): return []", "check", ["unknown hook kdray_distiller()", "Did you mean 'kdray_distillers'?"]),
    "unknown argument": ("from kdray import hookimpl\n@hookimpl\ndef kdray_epoch_finished(run, metric): ...", "check", ["kdray_epoch_finished() has an unknown argument 'metric'", "run, metrics"]),
    "argument of none": ("from kdray import hookimpl\n@hookimpl\ndef kdray_models(registry): ...", "check", ["unknown argument 'registry'", "it takes none"]),
    "any argument": ("from kdray import hookimpl\n@hookimpl\ndef kdray_run_started(**all): ...", "check", ["must name its arguments"]),
    "wrapper": ("from kdray import hookimpl\n@hookimpl(wrapper=True)\ndef kdray_models(): return (yield)", "check", ["is a wrapper"]),
    "newer hooks": ("kdray_api = 2", "check", ["hook version 2", "has hook version 1", "upgrade kdray"]),
    "older hooks": ("kdray_api = 0", "check", ["hook version 0", "upgrade the plugin"]),
    "hook raises": (broken("SPECS = 1", None) + "\n@hookimpl\ndef kdray_models():\n    return 1 / 0", "specs", ["ZeroDivisionError", "fake_bad.py:6"]),
    "returns nothing": (broken("SPECS = None"), "specs", ["kdray_distillers() returned nothing", "list of DistillerSpec"]),
    "wrong spec": (broken("SPECS = [3]"), "specs", ["returned 3; expected DistillerSpec"]),
    "wrong name": (broken("SPECS = [DistillerSpec('a b', Distiller)]"), "specs", ["the name 'a b'"]),
    "twice": (broken(DISTILLER.format(body=FORWARD) + " * 2"), "specs", ["two specs of the name 'my'"]),
    "not a Distiller": (broken("SPECS = [DistillerSpec('my', dict)]"), "specs", ["distiller 'my'", "not a subclass of kdray.Distiller"]),
    "no forward": (broken(DISTILLER.format(body="pass")), "specs", ["My has no forward(self, student, teacher, batch, step)"]),
    "wrong forward": (broken(DISTILLER.format(body="def forward(self, s, t): ...")), "specs", ["My.forward has the arguments (self, s, t); expected (self, student, teacher, batch, step)"]),
    "wrong init": (broken(DISTILLER.format(body="def __init__(self, dim): ...\n    " + FORWARD)), "specs", ["My.__init__ has the arguments (self, dim); expected (self, options, setup)"]),
    "wrong requires": (broken(DISTILLER.format(body="requires = {'logits'}\n    " + FORWARD)), "specs", ["requires is {'logits'}", "kdray.Requires("]),
    "options of another kind": (broken(DISTILLER.format(body="Options = dict\n    " + FORWARD)), "specs", ["Options is <class 'dict'>; expected a subclass of kdray.Options"]),
    "no description": (broken(OPTIONS.format(field="dim: int = 3")), "specs", ["option 'dim' has no description"]),
    "reserved option": (broken(OPTIONS.format(field="weight: int = Field(3, description='W.')")), "specs", ["option 'weight' is a key of kdray itself"]),
    "model build": (broken("def build(n): ...\nSPECS = [ModelSpec('m', build)]", "kdray_models"), "specs", ["build(n) cannot be called as (num_classes=…, in_channels=…, weights=…, options=…)"]),
    "data set load": (broken("SPECS = [DatasetSpec('d', lambda path: 0)]", "kdray_datasets"), "specs", ["load(path) cannot be called as (options, path, split)"]),
    "optimizer without lr": (broken("SPECS = [OptimizerSpec('o', lambda parameters, options: 0, Options)]", "kdray_optimizers"), "specs", ["optimizer 'o'", "'lr'"]),
    "augmentation": (broken("SPECS = [AugmentationSpec('a', dict)]", "kdray_augmentations"), "specs", ["augmentation 'a'", "not a subclass of kdray.Augmentation"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_recorded_and_the_others_go_on(install, case, good):
    source, phase, parts = BROKEN[case]
    install("kdray-bad", {"bad": "fake_bad"}, {"fake_bad": source}, version="2.1")
    install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": good("foo")})
    host = load_plugins()
    info = one(host, "kdray-bad")
    assert (info.status, info.phase, info.version) == ("failed", phase, "2.1")
    for part in parts:
        assert part in info.error
    assert info.source_path.endswith("fake_bad.py")
    assert not host.manager.has_plugin("kdray-bad:bad")
    assert not info.specs
    assert one(host, "kdray-foo").status == "loaded"


def test_an_absent_module_is_recorded(install):
    install("kdray-bad", {"bad": "fake_absent", "worse": "fake_absent.inner"}, {})
    bad = {info.name: info for info in load_plugins().plugins if info.dist == "kdray-bad"}
    assert bad["bad"].error == "ModuleNotFoundError: No module named 'fake_absent'"
    assert bad["worse"].status == "failed"


def test_corrupt_entry_points_are_recorded(install, good):
    install("kdray-bad", {}, {}, entry_points="[kdray]\nno equals sign here\n")
    install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": good("foo")})
    host = load_plugins()
    assert one(host, "kdray-foo").status == "loaded"
    assert [(i.status, i.phase) for i in host.plugins if i.dist == "kdray-bad"] == [("failed", "find")]


def test_a_half_removed_distribution_is_loaded_or_recorded(install, good):
    site = install("kdray-bad", {"bad": "fake_absent"}, {})
    (site / "kdray_bad-1.0.dist-info" / "METADATA").unlink()
    install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": good("foo")})
    host = load_plugins()
    assert one(host, "kdray-foo").status == "loaded"
    assert [(i.dist, i.status) for i in host.plugins if i.name == "bad"] == [
        (f"unnamed distribution in {site}", "failed")
    ]


def test_optional_hooks_of_other_versions_are_no_error(install, good):
    extra = "\n@hookimpl(optionalhook=True)\ndef kdray_later(): ...\n"
    install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": good("foo") + extra})
    assert one(load_plugins(), "kdray-foo").status == "loaded"


def test_equal_entry_point_names_are_both_loaded(install, good):
    install("kdray-a", {"same": "fake_a"}, {"fake_a": good("a")})
    install("kdray-b", {"same": "fake_b"}, {"fake_b": good("b")})
    host = load_plugins()
    assert [(i.id, i.status) for i in host.plugins if i.name == "same"] == [
        ("kdray-a:same", "loaded"),
        ("kdray-b:same", "loaded"),
    ]


def test_a_module_offered_twice_is_loaded_once(install, good):
    install("kdray-a", {"x": "fake_a", "y": "fake_a"}, {"fake_a": good("a")})
    x, y = (i for i in load_plugins().plugins if i.dist == "kdray-a")
    assert (x.status, y.status) == ("loaded", "failed")
    assert "it is loaded already, as kdray-a:x" in y.error


def test_an_instance_can_be_an_entry_point(install):
    source = "from kdray import hookimpl\nclass P:\n    @hookimpl\n    def kdray_models(self): return []\np = P()"
    install("kdray-a", {"x": "fake_a:p", "y": "fake_a:P"}, {"fake_a": source})
    x, y = (i for i in load_plugins().plugins if i.dist == "kdray-a")
    assert x.status == "loaded"
    assert "the class P" in y.error


@pytest.mark.parametrize("block", ["kdray-foo", "Kdray_Foo", "foo", "kdray-foo:foo"])
def test_a_blocked_plugin_is_not_imported(install, monkeypatch, block):
    install("kdray-foo", {"foo": "fake_foo"}, {"fake_foo": "raise RuntimeError"})
    assert one(load_plugins(blocked=[block]), "kdray-foo").status == "blocked"
    monkeypatch.setenv("KDRAY_BLOCK", f"other, {block}")
    host = load_plugins()
    assert one(host, "kdray-foo").status == "blocked"
    assert host.idle_blocks == ["other"]


def test_the_digest_covers_the_package(install, good):
    site = install(
        "kdray-foo",
        {"foo": "fake_pkg.plugin"},
        {"fake_pkg.__init__": "", "fake_pkg.plugin": good("foo"), "fake_pkg.help": "x = 1"},
    )
    before = one(load_plugins(), "kdray-foo").sha256
    assert one(load_plugins(), "kdray-foo").sha256 == before
    (site / "fake_pkg" / "help.py").write_text("x = 2")
    assert one(load_plugins(), "kdray-foo").sha256 != before


def test_local_files_and_folders(tmp_path, good):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("one", "two", "_helper"):
        (folder / f"{name}.py").write_text(good(name))
    (tmp_path / "three.py").write_text(good("three"))
    (tmp_path / "two.py").write_text(good("another"))
    paths = [folder, tmp_path / "three.py", tmp_path / "two.py", tmp_path / "absent.py", tmp_path / "data.txt"]
    (tmp_path / "data.txt").write_text("")
    host = load_plugins(paths=paths)
    local = [i for i in host.plugins if not i.dist]
    assert [(i.name, i.status, i.phase) for i in local] == [
        ("one", "loaded", ""), ("two", "loaded", ""), ("three", "loaded", ""), ("two", "failed", "find"), ("absent", "failed", "find"), ("data", "failed", "find"),
    ]  # fmt: skip
    assert "another local plugin is named 'two'" in local[3].error
    assert f"there is no file or folder {tmp_path / 'absent.py'}" in local[4].error
    assert "a local plugin is a .py file" in local[5].error
    assert list(host.local_sources) == ["one", "two", "three"]


def test_an_error_in_a_local_file_names_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ny = x / 0\n")
    (info,) = load_plugins(paths=[tmp_path / "bad.py"]).failed[-1:]
    assert info.error == f"ZeroDivisionError: division by zero ({tmp_path / 'bad.py'}:2)"


def test_lifecycle_errors_stop_nobody(tmp_path):
    (tmp_path / "a.py").write_text(
        "from kdray import hookimpl\nseen = []\n@hookimpl\ndef kdray_epoch_finished(metrics): seen.append(metrics)"
    )
    (tmp_path / "b.py").write_text(
        "from kdray import hookimpl\n@hookimpl\ndef kdray_epoch_finished(run, metrics): 1 / 0"
    )
    host = load_plugins(paths=[tmp_path / "a.py", tmp_path / "b.py"])
    (problem,) = host.tell("kdray_epoch_finished", run={}, metrics={"epoch": 3})
    assert problem.startswith("plugin local:b failed in kdray_epoch_finished: ZeroDivisionError")
    assert host.manager.get_plugin("local:a").seen == [{"epoch": 3}]
