"""Loading: defaults, origins, extends, overrides, paths."""

import subprocess
import sys

import pytest

from kdray.config.dump import annotated_yaml, to_yaml
from kdray.config.load import digest, load_config
from kdray.config.sections import options_class, parse_options
from kdray.config.yaml import read
from kdray.errors import ConfigError


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_defaults_of_plugins_are_filled_in(load):
    config = load().config
    assert config.losses["kd"].options == {"temperature": 4.0}
    assert config.losses["crd"].options["negatives"] == {"kind": "bank", "count": 16384}
    assert config.optimizer.options == {"momentum": 0.9}
    assert config.data.augment == [{"crop": {"padding": 4}}, {"flip": {"p": 0.5}}]


def test_options_of_a_loaded_config_build_the_options_class(load, registry):
    config = load(load.__globals__["VALID"], "losses.crd.stages=[3, 4]").config
    cls = options_class(registry.get("distillers", "crd"))
    assert cls.model_validate(config.losses["crd"].options).stages == (3, 4)
    assert parse_options(cls, {"stages": [1]}).stages == (1,)


def test_origins(load, valid):
    origins = load(valid, "schedule.gamma=0.2", "data.augment=[flip]").origins
    assert origins["optimizer.lr"] == "c.yaml:13:28"
    assert origins["losses.crd.dim"] == "c.yaml:12:10"
    assert origins["schedule.gamma"] == origins["data.augment"] == "command line"
    assert (
        origins["losses.crd.negatives.kind"]
        == origins["engine.precision"]
        == origins["optimizer.momentum"]
        == "default"
    )


def test_trackers(load, valid):
    assert load(valid).config.trackers == [{"tensorboard": {}}]
    assert load(valid, "trackers=[]").config.trackers == []
    loaded = load(valid + "trackers: [tensorboard, {server: }]\n")
    assert loaded.config.trackers == [{"tensorboard": {}}, {"server": {"uri": "here"}}]
    assert loaded.origins["trackers"] == "c.yaml:15:11"
    assert digest(loaded.config) == digest(load(valid).config)


def test_whole_numbers_where_floats_are_declared(load, valid):
    assert load(valid, "optimizer.lr=1", "losses.kd.weight=2").config.losses["kd"].weight == 2.0


def test_weight_schedule(load, valid):
    weight = load(valid, "losses.kd.weight.value=2", "losses.kd.weight.warmup=5").config.losses["kd"].weight
    assert (weight.value, weight.warmup) == (2.0, 5.0)


def test_label_and_use(load, valid):
    config = load(valid, "losses.hot={use: kd, temperature: 9}").config
    assert config.losses["hot"].use == "kd"
    assert config.losses["hot"].options == {"temperature": 9.0}


def test_model_of_the_user_is_not_imported(load, valid):
    config = load(valid, "student={model: 'nowhere:build', width: 3}").config
    assert config.student.options == {"width": 3}


@pytest.mark.parametrize(
    "change",
    [
        "losses.crd.stages=[3]",
        "teacher=null; losses.kd=null; losses.crd=null",
        "student={model: 'a:b', text: 010x}",
    ],
)
def test_round_trip(load, valid, registry, tmp_path, change):
    loaded = load(valid, *change.split("; "))
    write(tmp_path, again=to_yaml(loaded.config), noted=annotated_yaml(loaded))
    for name in ("again", "noted"):
        again = load_config(f"{name}.yaml", (), registry)
        assert again.config == loaded.config
        assert to_yaml(again.config) == to_yaml(loaded.config)
        assert "default" not in again.origins.values()


def test_annotated(load, valid):
    lines = annotated_yaml(load(valid, "optimizer.lr=0.1", "losses.crd.note='a\tb: c'")).splitlines()
    found = {line.split(":")[0].strip(): line.rpartition("  # ")[2] for line in lines if "  # " in line}
    assert found["lr"] == "command line"
    assert found["dim"] == "c.yaml:12:10"
    assert found["augment"] == "c.yaml:2:47"
    assert found["precision"] == "default"


def test_extends(load, valid, tmp_path, registry):
    (tmp_path / "sub").mkdir()
    write(tmp_path, base=valid, middle="extends: base.yaml\nlosses: {crd: {dim: 64}}\nschedule: {milestones: [9]}\n")
    write(tmp_path / "sub", top="extends: ../middle.yaml\nname: top\nlosses: {kd: null}\n")
    load(valid)
    loaded = load_config("sub/top.yaml", ["losses.crd.temperature=0.1"], registry)
    assert loaded.config.name == "top"
    assert list(loaded.config.losses) == ["ce", "crd"]
    assert loaded.config.losses["crd"].options["dim"] == 64
    assert loaded.config.losses["crd"].weight == 0.8
    assert loaded.config.schedule.milestones == [9]
    assert loaded.origins["losses.crd.dim"] == "middle.yaml:2:21"
    assert loaded.origins["losses.crd.weight"] == "base.yaml:11:13"
    assert loaded.files == ("sub/top.yaml", "middle.yaml", "base.yaml")
    assert loaded.text.startswith("extends: ../middle.yaml")


def test_null_takes_away_what_was_inherited(load, valid, tmp_path):
    write(tmp_path, base=valid.replace("lr: 0.05", "lr: 0.05, momentum: 0.5") + "engine: {ema: 0.9}\n")
    config = load("extends: base.yaml\noptimizer: {momentum: null}\nengine: {ema: null}\n").config
    assert config.optimizer.options["momentum"] == 0.9
    assert config.engine.ema is None
    config = load(
        "extends: base.yaml\noptimizer: {name: adamw, momentum: null}\nengine: null\ndata: {augment: null}"
    ).config
    assert config.optimizer.options == {"eps": 1e-8}
    assert config.engine.ema is None
    assert config.data.augment == []


def test_null_then_a_new_value(load, valid, tmp_path):
    write(tmp_path, base=valid, middle="extends: base.yaml\nlosses: {crd: null}\n")
    config = load("extends: middle.yaml\nlosses: {crd: {temperature: 0.5}}\n").config
    assert config.losses["crd"].weight == 1.0
    assert "crd" not in load("extends: middle.yaml\n").config.losses
    assert "crd" not in load(valid, "losses.crd=null").config.losses


def test_circle(errors, tmp_path):
    write(tmp_path, b="extends: c.yaml\n")
    assert errors("name: x\nextends: b.yaml\n") == ["b.yaml:1:10: extends: a circle: c.yaml -> b.yaml -> c.yaml"]
    assert errors("extends: c.yaml\n") == ["c.yaml:1:10: extends: a circle: c.yaml -> c.yaml"]


def test_a_file_without_end(errors):
    assert errors("extends: /dev/zero\n") == [
        "c.yaml:1:10: extends: /dev/zero is longer than 1,000,000 bytes, which no config is"
    ]


def test_not_all_of_very_many_faults_are_told(errors):
    lines = errors("".join(f"k{i}: 1\n" for i in range(3000)))
    assert len(lines) == 101 and lines[-1].endswith(" more")


def test_base_that_is_not_there(errors, tmp_path):
    write(tmp_path, base="a: 1")
    assert errors("extends: bose.yaml\n") == [
        "c.yaml:1:10: extends: there is no file bose.yaml. Did you mean 'base.yaml'?"
    ]


def test_no_file(tmp_path, registry):
    with pytest.raises(ConfigError, match=r"there is no file .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml", (), registry)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path, (), registry)


def test_paths(valid, tmp_path, registry, monkeypatch):
    for folder in ("conf", "cwd"):
        (tmp_path / folder).mkdir()
    (tmp_path / "conf" / "here.pt").touch()
    monkeypatch.chdir(tmp_path / "cwd")
    text = valid.replace("student: {model: wrn_16_2}", "student: {model: wrn_16_2, checkpoint: here.pt}")
    write(tmp_path / "conf", c=text + "run: {dir: runs}\n")

    def paths(*overrides):
        config = load_config("../conf/c.yaml", overrides, registry).config
        found = (config.teacher.train, config.student.checkpoint, config.data.path, config.run.dir)
        return [path and path.removeprefix(f"{tmp_path}/") for path in found]

    assert paths() == ["conf/teachers/wrn.yaml", "conf/here.pt", None, "cwd/runs"]
    assert paths("student.checkpoint=here.pt", "teacher.train=t.yaml", "data.path=d") == [
        "cwd/t.yaml",
        "cwd/here.pt",
        "cwd/d",
        "cwd/runs",
    ]
    write(tmp_path / "conf", c=text.replace("here.pt", "there.pt"))
    assert paths()[1] == "cwd/there.pt"


def test_mix(load, valid):
    named = load(valid, "data.mix=cutmix").config
    assert named.data.mix.way == ("cutmix", named.data.mix.cutmix)
    assert (named.data.mix.cutmix.alpha, named.data.mix.cutmix.p, named.data.mix.mixup) == (1.0, 1.0, None)
    assert load(valid, "data.mix={cutmix: {alpha: 1.0}}").config == named
    assert load(to_yaml(named)).config == named
    assert load(to_yaml(named), "data.mix.cutmix=null", "data.mix.mixup={}").config.data.mix.way[0] == "mixup"
    assert load(to_yaml(named), "data.mix=null").config.data.mix is None


def test_digest(load, valid):
    base = digest(load().config)
    assert len(base) == 64
    same = [
        "scale.num_workers=4",
        "run.name=x",
        "baseline=true",
        "losses.kd.temperature=4",
        "data.augment=[crop: {}, flip]",
    ]
    assert digest(load(valid, *same).config) == base
    assert digest(load(valid, "data.mix=mixup").config) == digest(load(valid, "data.mix={mixup: {p: 1}}").config)
    for change in (
        "seed=1",
        "data.mix=mixup",
        "losses.kd.temperature=3",
        "data.augment=[flip, crop]",
        "teacher.model=convnet",
    ):
        assert digest(load(valid, change).config) != base


def test_torch_and_ray_are_not_imported():
    modules = ["dump", "load", "jsonschema", "project"]
    imports = "; ".join(f"import kdray.config.{module}" for module in modules)
    code = f"import sys; {imports}; print({{'torch', 'ray'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_text_is_read_once_with_a_byte_order_mark(load, valid):
    assert load("\ufeff" + valid).config.name == "test"
    assert read("\ufeffa: 1", "f").value == {"a": 1}
