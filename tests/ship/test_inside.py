"""What a report sees inside of networks: bounded numbers of pictures and places, and what cannot be seen."""

import json

import pytest
import torch
from torch import nn

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.data.published import digits
from kdray.launch.measure import rebuild
from kdray.run.cka import centred_gram
from kdray.ship import inside
from kdray.ship.inside import MAP, STAGES, look, mapped, pooled
from kdray.ship.report import report
from tests.conftest import Lab

FACTORY = """
from torch import nn

def plain(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 6), nn.ReLU(), nn.Linear(6, num_classes))

def no_linear(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 8), nn.Flatten())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("inside"))


def rebuilt(home, run):
    config = load_config(run.config_file, registry=home.registry).config
    weights = str(run.weights())
    return rebuild(config, home.registry, find_project().data, weights, "student", torch.device("cpu"))


def test_stages_and_embedding(home):
    run = home.run("seen", run={"dir": str(home.path)})
    found = rebuilt(home, run)
    seen = look(found, found.parts.data.test)
    assert list(seen.grams) == ["stages.0", "stages.1", "embedding"] and not seen.missing
    said = {}
    for name in ("stages.0", "stages.1"):
        found.network.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: said.update({name: out}))
    found.network.fc.register_forward_hook(lambda m, i, out: said.update(embedding=i[0]))
    test = digits(None, None, "test")
    with torch.no_grad():
        found.logits(test.images)
    for name, gram in seen.grams.items():
        expected = centred_gram(said[name].flatten(1))
        torch.testing.assert_close(gram, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    torch.testing.assert_close(seen.embedding, said["embedding"], atol=1e-5, rtol=1e-4)
    assert len(seen.map) == 360 and all(len(place) == 2 for place in seen.map)


def test_the_number_of_pictures_is_bounded(home, monkeypatch):
    monkeypatch.setattr(inside, "COMPARED", 40)
    monkeypatch.setattr(inside, "MAPPED", 50)
    found = rebuilt(home, home.run("bounded", run={"dir": str(home.path)}))
    seen = look(found, found.parts.data.test)
    assert {gram.shape for gram in seen.grams.values()} == {(40, 40)} and seen.embedding.shape == (50, 8)
    labels = torch.arange(1000) % 100
    positions = mapped(labels)
    assert labels[positions].bincount().nonzero()[:, 0].tolist() == list(range(0, 100, 10))  # a tenth of the classes
    assert set(labels[positions].bincount().tolist()) == {0, 5} and len(positions) == 50  # and half of their pictures
    assert len(mapped(torch.zeros(20).long())) == 20


def test_places_are_bounded():
    x = torch.rand(2, 3, 32, 9)
    assert torch.equal(pooled(x), nn.functional.adaptive_avg_pool2d(x, [8, 8]).flatten(1))
    small = torch.rand(2, 3, 4, 8)
    assert torch.equal(pooled(small), small.flatten(1))
    tokens = torch.rand(2, 256, 5)
    assert torch.allclose(pooled(tokens), tokens.unflatten(1, (64, 4)).mean(2).mT.flatten(1))
    assert torch.equal(pooled(tokens[:, 0]), tokens[:, 0])


def test_networks_that_cannot_be_seen_into(home, teacher_weights, tmp_path, monkeypatch):
    """The rest of the report is there."""
    monkeypatch.chdir(home.path)
    monkeypatch.syspath_prepend(home.path)
    monkeypatch.setattr(inside, "MAPPED", 50)
    (home.path / "blind_networks.py").write_text(FACTORY)
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    runs = [
        home.run(
            name,
            run={"dir": str(tmp_path)},
            student={"model": f"blind_networks:{name}"},
            teacher=teacher,
            losses={"kd": {}},
        )
        for name in ("plain", "no_linear")
    ]
    page, left_out = report(runs, tmp_path / "out", home.registry, find_project().data)
    of = {name: [line for line in left_out if line.startswith(f"{name}: ")] for name in ("plain", "no_linear")}
    (plain,) = of["plain"]
    assert plain.startswith(f"plain: {STAGES}: student: ") and "layers" in plain
    assert [line.split(": ")[1] for line in of["no_linear"]] == [STAGES, MAP]
    methods = json.loads((page.parent / "report.json").read_text())["methods"]
    assert methods["plain"]["stages"]["cka"] == {"teacher": {}} and list(methods["plain"]["map"]["places"]) == [
        "teacher",
        "student",
    ]
    assert list(methods["no_linear"]["map"]["places"]) == ["teacher"]
    made = {file.name for file in page.parent.glob("*.png")}
    assert "1-plain-map.png" in made and not any("stages" in name for name in made)


def test_all_embeddings_the_same(home):
    found = rebuilt(home, home.run("same", run={"dir": str(home.path)}))
    nn.init.zeros_(found.parts.student.model.fc.weight)
    found.parts.student.model.fc.register_forward_pre_hook(lambda module, inputs: (torch.zeros_like(inputs[0]),))
    seen = look(found, found.parts.data.test)
    assert seen.embedding is None and seen.missing == {MAP: "all pictures have the same embedding"}
