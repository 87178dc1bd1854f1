"""`kdray probe`: linear classifiers on frozen networks of real runs."""

import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from kdray.config.project import find_project
from kdray.data.normalize import Normalize
from kdray.data.published import digits
from kdray.errors import ConfigError
from kdray.models.checkpoint import load_weights
from kdray.models.convnet import ConvNet
from kdray.ship.finished import Finished
from kdray.ship.networks import Networks
from kdray.ship.probe import Embeddings, Fitted, accuracies, transfer
from tests.conftest import Lab


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def run(home, teacher_weights):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    more = {"run": {"dir": str(home.path)}, "data": {"samples": 600}, "schedule": {"epochs": 8}}
    return home.run("distilled", **more, teacher=teacher, losses={"ce": {}, "kd": {}})


@pytest.fixture
def probe(home):
    def call(run, name="digits", *given, fit="lbfgs", best=False, teachers=False):
        networks = Networks(home.registry, find_project().data)
        return transfer(Finished.read(run, home.registry), name, list(given), fit, best, teachers, 0, networks)

    return call


def by_hand(run, split):
    """What goes into the classifier, read without kdray's taps."""
    network = ConvNet([4, 8], 10, 1)
    load_weights(network, str(run.path / "student.safetensors"))
    train, source = digits(None, None, "train"), digits(None, None, split)
    x = train.images.double() / 255
    seen = []
    network.eval().fc.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        network(Normalize([x.mean()], [x.std(unbiased=False)])(source.images, torch.float32))
    return seen[0], source.labels


def test_it_is_a_regression_on_what_goes_into_the_classifier(probe, run):
    found = probe(run)
    (x, y), (test_x, test_y) = by_hand(run, "train"), by_hand(run, "test")
    mean, std = x.mean(0), x.std(0, unbiased=False)
    model = LogisticRegression(max_iter=2000).fit(((x - mean) / std).numpy(), y.numpy())
    student = found["networks"]["student"]
    assert student["embedding"] == 8 and student["converged"]
    assert student["train"] == pytest.approx(model.score(((x - mean) / std).numpy(), y.numpy()), abs=3e-3)
    assert student["test"] == pytest.approx(model.score(((test_x - mean) / std).numpy(), test_y.numpy()), abs=6e-3)
    assert (found["train"], found["test"], found["classes"], found["input"]) == (1437, 360, 10, [1, 8, 8])


def test_the_teacher_too(probe, run, teacher_weights):
    found = probe(run, teachers=True)["networks"]
    assert list(found) == ["student", "teacher"] and found["teacher"]["weights"] == teacher_weights
    assert found["teacher"]["embedding"] == 32
    assert found["teacher"]["test"] > found["student"]["test"] + 0.05


@pytest.mark.parametrize("fit", ["lbfgs", "sgd"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_of_an_embedding_does_not_matter(fit, scale):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 5, generator=generator) * 3
    y = torch.arange(3).repeat(40)
    x = torch.cat([centres[y] + torch.randn(120, 5, generator=generator), torch.full((120, 1), 7.0)], dim=1)
    found = accuracies(Embeddings(x[:90] * scale, y[:90]), Embeddings(x[90:] * scale, y[90:]), fit, 0)
    assert found["train"] == 1 and found["test"] == 1
    noise = accuracies(Embeddings(x[:90] * scale, y[:90]), Embeddings(x[90:] * scale, y[90:].flip(0)), fit, 0)
    assert noise["train"] == 1 and noise["test"] < 0.6


def test_an_embedding_that_is_no_number():
    bad = Embeddings(torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="no finite numbers"):
        accuracies(bad, bad, "lbfgs", 0)


def test_pictures_are_covered_and_cropped():
    picture = torch.arange(24 * 10).to(torch.uint8).view(1, 1, 24, 10)
    assert Fitted((8, 8))(picture, None).shape == (1, 1, 8, 8)
    assert Fitted((30, 7))(picture, None).shape == (1, 1, 30, 7)
    assert torch.equal(Fitted((24, 10))(picture, None), picture)
    assert torch.equal(Fitted((12, 10))(picture, None), picture[:, :, 6:18])  # nothing is scaled where the width fits


def test_a_folder_of_larger_pictures(probe, run, tmp_path):
    for split, each in (("train", 12), ("test", 6)):
        source = digits(None, None, split)
        for label in (3, 7):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for i, image in enumerate(source.images[source.labels == label][:each]):
                Image.fromarray(image[0].numpy()).resize((16 + i, 20), Image.Resampling.BICUBIC).save(
                    folder / f"{i}.png"
                )
    found = probe(run, "folder", f"path={tmp_path}", "channels=1", fit="sgd")
    assert (found["train"], found["test"], found["classes"], found["input"]) == (24, 12, 2, [1, 8, 8])
    assert found["networks"]["student"]["test"] > 0.7
    with pytest.raises(ConfigError, match="have 3 channels, and distilled was trained on 1"):
        probe(run, "folder", f"path={tmp_path}")


def test_a_head_that_a_loss_has_made_is_refused(probe, home, teacher_weights):
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    other = home.run(
        "simkd", run={"dir": str(home.path)}, teacher=teacher, losses={"simkd": {}}, schedule={"epochs": 1}
    )
    with pytest.raises(ConfigError, match="gives its student another head"):
        probe(other)


def test_what_is_asked_for_is_looked_at(probe, home, run):
    alone = home.run("alone", run={"dir": str(home.path)}, schedule={"epochs": 1})
    for given, message in (
        (["augment=[flip]"], "a probe does not read augment"),
        (["batch_size=3"], "a probe does not read batch_size"),
        (["sample=3"], "unknown key 'sample'. Did you mean 'samples'"),
        (["samples"], "is not an option of the data set"),
        (["samples=99999"], "data.samples asks for 99999"),
    ):
        with pytest.raises(ConfigError, match=message):
            probe(run, "digits", *given)
    with pytest.raises(ConfigError, match="learned from no teacher"):
        probe(alone, teachers=True)
    with pytest.raises(ConfigError, match="unknown data set 'digts'"):
        probe(run, "digts")
    assert probe(run, "digits", "samples=50")["train"] == 50
