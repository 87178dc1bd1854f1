"""The JSON Schema agrees with the loader."""

import jsonschema
import pytest

from kdray.config.dump import to_yaml
from kdray.config.jsonschema import json_schema
from kdray.config.merge import merge
from kdray.config.yaml import read


@pytest.fixture(scope="module")
def validator(registry):
    schema = json_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "losses.hot={use: kd, temperature: 3}",
        "losses.crd.negatives={kind: queue, length: 3}",
        "losses.kd.weight={value: 1, warmup: 3}",
        "student={model: 'a:b', anything: 3}",
        "student={model: convnet, widths: [1]}",
        "student={model: torchvision/resnet18, weights: DEFAULT}",
        "data.augment=[crop, {flip: {p: 0.1}}, {crop: null}]",
        "data.mix=mixup",
        "data.mix={cutmix: {}}",
        "data.mix={mixup: {alpha: 0.2, p: 0.5}, cutmix: null}",
        "optimizer={name: adamw, lr: 1, eps: 1e-3}",
        "optimizer={lr: 1, momentum: 0.3}",
        "teacher=null; losses.kd=null; losses.crd=null",
        "trackers=[]",
        "trackers=[tensorboard, {server: {uri: there}}]",
        "trackers=[{server: null}]",
    ],
)
def test_valid(validator, valid, load, override):
    loaded = load(valid, *override.split("; "))
    validator.validate(merge("c.yaml", override.split("; "))[0].value)
    validator.validate(read(to_yaml(loaded.config), "f").value)


@pytest.mark.parametrize(
    "override",
    [
        "sede=1",
        "losses.hot={use: kd, dim: 3}",
        "losses.hot={use: kdd}",
        "losses.kd.dim=3",
        "losses.crd.negatives={kind: queue, count: 3}",
        "losses.kd.weight={value: 1, warmpu: 3}",
        "student={model: nothing}",
        "student={model: convnet, width: [1]}",
        "student={model: wrn_16_2, widths: [1]}",
        "data.augment=[crap]",
        "data.augment=[{flip: {q: 0.1}}]",
        "data.batchsize=3",
        "data.image=x",
        "data.mix=mixpu",
        "data.mix={cutmx: {}}",
        "data.mix={mixup: {alhpa: 1}}",
        "data.mix={mixup: {alpha: 0}}",
        "data.mix={cutmix: {p: 1.5}}",
        "optimizer={name: adamw, lr: 1, momentum: 0.3}",
        "optimizer={lr: 1, momentun: 0.3}",
        "optimizer={lr: -1}",
        "engine.precision=fp8",
        "trackers=[servre]",
        "trackers=[{server: {url: x}}]",
    ],
)
def test_invalid(validator, valid, errors, override):
    errors(valid, override)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(merge("c.yaml", [override])[0].value)


def test_a_file_that_extends_may_leave_out_what_is_required(validator):
    validator.validate(
        {"extends": "x.yaml", "optimizer": {"momentum": 0.5}, "losses": {"crd": None, "mine": {"weight": 2}}}
    )
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"name": "x"})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"extends": "x.yaml", "optimiser": {}})


def test_descriptions(registry):
    schema = json_schema(registry)
    crd = schema["properties"]["losses"]["properties"]["crd"]
    assert crd["description"] == "Contrast. Tian et al., ICLR 2020."
    mix = schema["$defs"]["DataConfig"]["properties"]["mix"]
    options = schema["$defs"]["MixOptions"]["properties"]
    assert all(body["description"] for body in (mix, *schema["$defs"]["Mix"]["properties"].values(), *options.values()))
    assert crd["else"]["properties"]["dim"]["description"] == "Width of the embedding."
