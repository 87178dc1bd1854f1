"""What a user reads when a config is wrong."""

import pytest

from kdray.config.load import load_config
from kdray.errors import PluginError
from kdray.loader import PluginInfo


def test_everything_at_once_in_order(errors, valid):
    text = (
        valid.replace("dim: 128", "dim: 128\n    temprature: 0.1\n    negatives: {kind: bank, cuont: 3}")
        .replace("lr: 0.05", "lr: '0.1', momentun: 0.5")
        .replace("augment: [crop, flip]", "augment: [crap, {crop: {padding: -1}}, {flip: {q: 1}}]")
        .replace("wrn_16_2", "wrn_16")
        .replace("epochs: 240", "epochs: 1.5")
        .replace("teachers/wrn.yaml", "t.yaml\n  weights: X")
        + "enigne: {precision: fp32}\nseed: -1\nseed: 2\n"
    )
    assert errors(text, "data.batchsize=3", "losses.kdd.weight=1") == [
        "c.yaml:2:48: data.augment.0: unknown augmentation 'crap'. Did you mean 'crop'?",
        "c.yaml:2:71: data.augment.1.crop.padding: must be at least 0, not -1",
        "c.yaml:2:85: data.augment.2.flip: unknown key 'q'. Known: p.",
        "c.yaml:3:1: teacher: train and weights are given: a teacher comes from one of train, checkpoint, weights",
        "c.yaml:7:18: student.model: unknown model 'wrn_16'. Did you mean 'wrn_16_2'?",
        "c.yaml:14:5: losses.crd: unknown key 'temprature'. Did you mean 'temperature'?",
        "c.yaml:15:29: losses.crd.negatives: unknown key 'cuont'. Did you mean 'count'?",
        "c.yaml:16:28: optimizer.lr: must be a number, not the text '0.1'",
        "c.yaml:16:35: optimizer: unknown key 'momentun'. Did you mean 'momentum'?",
        "c.yaml:17:20: schedule.epochs: must be a whole number, not 1.5",
        "c.yaml:18:1: unknown key 'enigne'. Did you mean 'engine'?",
        "c.yaml:19:7: seed: must be at least 0, not -1",
        "c.yaml:20:1: the key 'seed' stands twice, in lines 19 and 20: remove one",
        "command line: data: unknown key 'batchsize'. Did you mean 'batch_size'?",
        "command line: losses.kdd: unknown distiller 'kdd'. Did you mean 'kd'?",
    ]


ONE = """
optimizer.lr=-1 -> optimizer.lr: must be greater than 0, not -1
optimizer.lr=.nan -> optimizer.lr: a number must be finite, not .nan
optimizer.lr=true -> optimizer.lr: must be a number, not true
losses.crd.temperature=-.inf -> losses.crd.temperature: a number must be finite, not -.inf
data.batch_size=64.0 -> data.batch_size: must be a whole number, not 64.0
data.batch_size=[1] -> data.batch_size: must be a whole number, not a list
data.in_memory=yes -> data.in_memory: must be 'auto' or true or false, not the text 'yes'
data.in_memory=auot -> data.in_memory: must be 'auto' or true or false, not the text 'auot'. Did you mean 'auto'?
data.augment=crop -> data.augment: must be a list, not the text 'crop'
data.augment=[3] -> data.augment.0: must be text or a mapping, not 3
data.augment=[{crop: {}, flip: {}}] -> data.augment.0: one augmentation an entry: a name, or {name: {option: value}}
data.augment.0=x -> 'data.augment.0=x': data.augment is a list, which is replaced as a whole: data.augment=[...]
data.mix=mixpu -> data.mix: must be 'mixup' or 'cutmix' or a mapping, not the text 'mixpu'. Did you mean 'mixup'?
data.mix=[mixup] -> data.mix: must be 'mixup' or 'cutmix' or a mapping, not a list
data.mix={cutmx: {}} -> data.mix: unknown key 'cutmx'. Did you mean 'cutmix'?
data.mix={} -> data.mix: give mixup or cutmix (`mixup: {}` for the defaults)
data.mix={mixup: null} -> data.mix: give mixup or cutmix (`mixup: {}` for the defaults)
data.mix={mixup: {}, cutmix: {}} -> data.mix: mixup and cutmix are given: a picture is mixed in one way
data.mix={mixup: {alhpa: 1}} -> data.mix.mixup: unknown key 'alhpa'. Did you mean 'alpha'?
data.mix={mixup: {alpha: 0}} -> data.mix.mixup.alpha: must be greater than 0, not 0
data.mix={cutmix: {p: 1.5}} -> data.mix.cutmix.p: must be at most 1, not 1.5
trackers=[servre] -> trackers.0: unknown tracker 'servre'. Did you mean 'server'?
trackers=[{server: {url: x}}] -> trackers.0.server: unknown key 'url'. Did you mean 'uri'?
trackers=[{server: {}, tensorboard: {}}] -> trackers.0: one tracker an entry: a name, or {name: {option: value}}
trackers=[server, server] -> trackers: 'server' is named twice
baseline=on -> baseline: must be true or false, not the text 'on'
name=a/b -> name: must match ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$, not the text 'a/b'
losses.kd.weight='1' -> losses.kd.weight: must be a number or a mapping, not the text '1'
losses.kd.weight=-1 -> losses.kd.weight: must be at least 0, not -1
losses.kd.weight={} -> losses.kd.weight: 'value' is missing
losses.kd.weight={value: -1} -> losses.kd.weight.value: must be at least 0, not -1
losses.crd.negatives={kind: bnak} -> losses.crd.negatives.kind: must be one of 'bank', 'queue', not the text 'bnak'.\
 Did you mean 'bank'?
losses.crd.negatives={count: 1} -> losses.crd.negatives: 'kind' is missing
losses.crd.stages=[1, x] -> losses.crd.stages.1: must be a whole number, not the text 'x'
losses.crd.stages=3 -> losses.crd.stages: must be a list, not 3
losses.new=null -> losses.new: must be a mapping, not null (write {} for the defaults)
losses.x y={use: kd} -> losses: the name 'x y' must match ^[A-Za-z_][A-Za-z0-9_-]*$
schedule.name=cosin -> schedule.name: must be 'constant', 'multistep', 'step' or 'cosine', not the text 'cosin'.\
 Did you mean 'cosine'?
student={model: torchvision/resnet18, weights: V1} -> student.weights: torchvision/resnet18 has no weights 'V1'.\
 Known: DEFAULT, IMAGENET1K_V1.
teacher.min_accuracy=95 -> teacher.min_accuracy: must be at most 1, not 95
novalue -> 'novalue' is not an override: write section.key=value, as in data.batch_size=256
a..b=1 -> 'a..b=1' is not an override: write section.key=value, as in data.batch_size=256
extends=x.yaml -> 'extends=x.yaml': extends belongs in a file
"""


@pytest.mark.parametrize(("override", "message"), [line.split(" -> ") for line in ONE.strip().splitlines()])
def test_one(errors, valid, override, message):
    assert errors(valid, override) == [f"command line: {message}"]


def test_a_view_that_would_not_show_the_mixed_picture(load, errors, valid):
    valid = valid.replace("  crd:", "  maps: {}\n  crd:")
    views = "data.extra_views={strong: {augment: [flip]}}"
    (line,) = errors(valid, "data.mix=mixup", views)
    assert "data: the view 'strong' is drawn anew from the original" in line and "extra_views.strong.of: base" in line
    load(valid, "data.mix=mixup", views, "data.extra_views.strong.of=base")
    load(valid, views)


def test_what_an_override_took_away(errors, valid):
    assert errors(valid, "optimizer.lr=null") == ["c.yaml:13:1: optimizer: 'lr' is missing"]
    assert errors(valid, "teacher.train=null") == [
        "c.yaml:3:1: teacher: an untrained teacher teaches nothing: give train, checkpoint or weights"
    ]


def test_keys_of_a_union(errors, valid):
    assert errors(valid, "losses.kd.weight={valeu: 1}") == [
        "command line: losses.kd.weight: 'value' is missing",
        "command line: losses.kd.weight: unknown key 'valeu'. Did you mean 'value'?",
    ]


def test_no_losses(errors, valid):
    assert errors("losses: {}\n")[-1] == "c.yaml:1:9: losses: must have at least 1 entry"


def test_missing_and_mistyped(errors, valid):
    assert errors("name: x\n") == [
        f"c.yaml:1:1: '{key}' is missing" for key in ("data", "student", "losses", "optimizer", "schedule")
    ]
    assert errors(valid.replace("lr: 0.05", "lrr: 0.05")) == [
        "c.yaml:13:1: optimizer: 'lr' is missing",
        "c.yaml:13:24: optimizer: unknown key 'lrr'. Did you mean 'lr'?",
    ]


def test_number_as_text_or_not(load, errors, valid):
    assert load(valid.replace("0.05", "1e-3")).config.optimizer.lr == 0.001
    assert errors(valid.replace("0.05", "1_000")) == [
        "c.yaml:13:28: optimizer.lr: must be a number, not the text '1_000'"
    ]


def test_empty_sections(errors, valid):
    assert errors(valid + "engine:\n") == [
        "c.yaml:15:8: engine: must be a mapping, not null (write {} for the defaults)"
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "c.yaml: the file is empty: a config needs at least name, data, student, losses and so on"),
        ("# nothing\n", "c.yaml: the file is empty: a config needs at least name, data, student, losses and so on"),
        ("- a\n", "c.yaml:1:1: a config is a mapping of keys to values"),
        ("extends: [a, b]\n", "c.yaml:1:10: extends: must be the name of one file"),
    ],
)
def test_not_a_config(errors, text, line):
    assert errors(text) == [line]


def test_inherited_unknown_key(errors, valid, tmp_path):
    (tmp_path / "base.yaml").write_text(valid.replace("lr: 0.05", "lr: 0.05, momentum: 0.9"))
    assert errors("extends: base.yaml\noptimizer: {name: adamw, esp: 1}\n") == [
        "c.yaml:2:26: optimizer: unknown key 'esp'. Did you mean 'eps'?",
        "base.yaml:13:34: optimizer: unknown key 'momentum'. Known: eps, lr, name."
        " It is inherited: `momentum: null` in c.yaml takes it away.",
    ]


def test_leftovers_of_another_kind(load, errors, valid):
    text = valid.replace("dim: 128", "dim: 128\n    negatives: {kind: bank, count: 3}")
    assert errors(text, "losses.crd.negatives.kind=queue") == [
        "c.yaml:13:29: losses.crd.negatives: unknown key 'count'. Known: kind, length. It is inherited:"
        " `losses.crd.negatives.count=null` takes it away."
    ]
    config = load(text, "losses.crd.negatives.kind=queue", "losses.crd.negatives.count=null").config
    assert config.losses["crd"].options["negatives"] == {"kind": "queue", "length": 64}


def test_override_that_is_not_yaml(errors, valid):
    assert errors(valid, "data.augment=[crop", "seed") == [
        "command line: 'data.augment=[crop': expected ',' or ']', but got '<stream end>' while parsing a flow sequence",
        "command line: 'seed' is not an override: write section.key=value, as in data.batch_size=256",
    ]


def test_broken_plugin(load, errors, valid, registry):
    registry.host.plugins.append(PluginInfo("broken", status="failed", error="ImportError: no module named x"))
    try:
        with pytest.raises(PluginError, match=r"command line: losses.broken: .*ImportError: no module named x"):
            load(valid, "losses.broken={}")
        with pytest.raises(PluginError, match=r"losses.mine: unknown distiller 'mine'.*ImportError: no module named x"):
            load(valid, "losses.mine={}")  # a plugin's name need not be that of its loss
        assert len(errors(valid, "losses.broken={}", "seed=-1")) == 2
    finally:
        registry.host.plugins.pop()


def test_deep_wrong_shapes_do_not_crash(valid, tmp_path, registry, errors):
    keys = ["data", "teacher", "student", "losses", "optimizer", "schedule", "engine", "losses.kd"]
    keys += ["data.augment", "trackers"]
    for key in keys:
        for value in ("3", "text", "[1, {a: b}]", "{a: {b: [1]}}", "{name: {x: 1}, model: [1], use: 3}", "null"):
            try:
                (tmp_path / "c.yaml").write_text(valid)
                load_config(tmp_path / "c.yaml", [f"{key}={value}"], registry)
            except Exception as error:
                assert type(error).__name__ == "ConfigError", (key, value, error)
