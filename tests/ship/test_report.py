"""`kdray report`: the page of real runs, its numbers, and what it says of runs that it cannot read."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from torch import nn

from kdray.config.load import load_config
from kdray.config.project import find_project
from kdray.data.published import digits
from kdray.errors import ConfigError
from kdray.launch.measure import rebuild
from kdray.run import analysis
from kdray.run.cka import centred_gram, cka
from kdray.run.folder import RunFolder
from kdray.ship import inside
from kdray.ship.report import report
from tests.conftest import Lab

SECTIONS = [
    *("results", "learning", "classes", "calibration", "agreement", "correlations", "stages", "embeddings", "softened"),
]
NASTY = ["<script>alert(1)<", "$a & \"b\" 'c'$"]
"""Names of classes."""


class Page(HTMLParser):
    """Sections, cells of tables, pictures, text; fails where a tag is not closed or a network would be asked."""

    def __init__(self, file: Path):
        super().__init__()
        self.sections, self.rows, self.pictures, self.text, self.open = [], [], [], "", []
        self.feed(file.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert all(not key.startswith("on") for key in given)
        if "src" in given:
            kind, data = given["src"].split(",", 1)
            assert kind == "data:image/png;base64"
            self.pictures.append(base64.b64decode(data, validate=True))
            assert given["alt"]
        assert given.get("href", "#").startswith("#")
        if tag == "section":
            self.sections.append(given["id"])
        if tag == "tr":
            self.rows.append([])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            assert "url(" not in data and "@import" not in data
            return
        self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1].append(data)


@pytest.fixture(scope="module", autouse=True)
def small_maps():
    """t-SNE of hundreds of pictures takes seconds, for each network of each report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside, "MAPPED", 40)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def runs(home, teacher_weights) -> list[RunFolder]:
    """Two seeds of one recipe, each with the student alone beside it."""
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    recipe = {"teacher": teacher, "losses": {"ce": {}, "kd": {"temperature": 4.0}}, "baseline": True}
    size = {"data": {"samples": 400}, "schedule": {"epochs": 3}}
    return [
        home.run("kd", run={"dir": str(home.path), "name": f"kd-seed{seed}"}, seed=seed, **recipe, **size)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def written(home, runs, tmp_path_factory):
    """The folder of a report of both."""
    folder = tmp_path_factory.mktemp("out") / "new" / "folder"
    page, left_out = report(runs, folder, home.registry, find_project().data)
    assert page == folder / "report.html" and not left_out
    return folder


@pytest.fixture(scope="module")
def numbers(written) -> dict:
    return json.loads((written / "report.json").read_text())


def logits_of(home, config, weights, role="student", split="test"):
    """(N, C), all at once."""
    found = rebuild(config, home.registry, find_project().data, str(weights), role, torch.device("cpu"))
    data = getattr(found.parts.data, split)
    with torch.no_grad():
        return found.logits(data.source.images[data.ids]), data.labels


def test_the_page_has_everything_in_it(written, numbers):
    page = Page(written / "report.html")
    assert page.sections == SECTIONS
    files = sorted(written.glob("*.png"))
    assert len(files) == 9 and sorted(page.pictures) == sorted(file.read_bytes() for file in files)
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 200
    assert [row[0] for row in page.rows[1:4]] == ["teacher", "student alone", "kd"]
    last = numbers["table"][2]["last"]
    assert page.rows[3][3] == f"{100 * last['mean']:.2f} ± {100 * last['deviation']:.2f} %"
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", (written / "report.html").read_text())
    assert not list(written.glob(".writing-*"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, and without the network."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    quiet = ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update")
    for flag in ("headless=new", "disable-sync", "disable-quic", *quiet):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 700])
def test_a_browser_shows_it(written, browser, width):
    browser.set_window_size(width, 900)
    browser.get((written / "report.html").as_uri())
    assert browser.title == "kd · kdray report" and browser.get_log("browser") == []
    images = "return [...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])"
    for complete, pixels, shown in browser.execute_script(images):
        assert complete and 200 < shown <= min(pixels + 40, width)
    wider = "return [document.documentElement, ...document.querySelectorAll('figure, p')]"
    assert not browser.execute_script(f"{wider}.filter(e => e.scrollWidth > e.clientWidth).map(e => e.tagName)")
    if width == 1280:  # on a narrow screen, tables can be moved to the side
        tables = "return [...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert browser.execute_script(tables) == 0
    for link in browser.find_elements("css selector", "nav a"):
        link.click()
        section = f"return document.querySelector('{link.get_attribute('hash')}').getBoundingClientRect().top"
        assert browser.execute_script(section) < 900
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 30)"


def test_the_table_is_what_the_runs_say(runs, numbers):
    teacher, alone, student = numbers["table"]
    for row, of in ((student, [run.summary for run in runs]), (alone, [run.summary["alone"] for run in runs])):
        assert row["runs"] == [one["name"] for one in of]
        assert row["last"]["values"] == [one["last"]["top1"] for one in of]
        assert row["best"]["values"] == [one["best"]["test_top1"] for one in of]
        a, b = row["last"]["values"]
        assert row["last"]["mean"] == pytest.approx((a + b) / 2)
        assert row["last"]["deviation"] == pytest.approx(abs(a - b) / 2**0.5)
        assert row["parameters"] == runs[0].summary["parameters"]
    assert teacher["last"]["values"] == [runs[0].summary["teacher"]["top1"]] and teacher["best"] is None
    assert student["bytes"] == (runs[0].path / "student.safetensors").stat().st_size
    kd = numbers["curves"][-1]
    for epoch in range(3):
        a, b = (run.rows("epoch")[epoch] for run in runs)
        assert kd["loss"]["mean"][epoch] == pytest.approx((a["loss"] + b["loss"]) / 2)
        assert kd["terms"]["kd"]["mean"][epoch] == pytest.approx((a["terms"]["kd"] + b["terms"]["kd"]) / 2)
        assert kd["test"]["deviation"][epoch] == pytest.approx(abs(a["test"]["top1"] - b["test"]["top1"]) / 2**0.5)


def test_macs_are_counted_by_hand(home, runs, numbers):
    """For each number that a layer gives, as many as that number has weights."""
    config = load_config(runs[0].config_file, registry=home.registry).config
    found = rebuild(config, home.registry, find_project().data, str(runs[0].weights()), "student", torch.device("cpu"))
    macs = []

    def count(module, inputs, output):
        macs.append(output[0].numel() * module.weight[0].numel())

    for module in found.network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        found.logits(digits(None, None, "test").images[:1])
    assert len(macs) >= 3 and numbers["table"][2]["macs"] == sum(macs)


def test_the_numbers_of_the_answers(home, runs, numbers):
    method, seeds = numbers["methods"]["kd"], []
    assert method["seeds"] == [0, 1] and method["classes"] == [str(digit) for digit in range(10)]
    for run in runs:
        config = load_config(run.config_file, registry=home.registry).config
        alone_run = RunFolder(run.path.parent / run.summary["alone"]["name"])
        of_alone = load_config(alone_run.config_file, registry=home.registry).config
        student, labels = logits_of(home, config, run.weights())
        teacher, _ = logits_of(home, config, config.teacher.checkpoint, "teacher")
        alone, _ = logits_of(home, of_alone, alone_run.weights())
        assert analysis.agreement(student, nn.functional.one_hot(labels)) == pytest.approx(run.summary["last"]["top1"])
        seeds.append((student, alone, teacher, labels))
    student, alone, teacher, labels = zip(*seeds)
    counts = [analysis.confusion(*pair) for pair in zip(student, labels)]
    assert method["confusion"] == (counts[0] + counts[1]).tolist()
    # Networks are asked in parts and here at once: the last digits differ.
    of_alone = [analysis.confusion(*pair) for pair in zip(alone, labels)]
    gains = [analysis.class_accuracy(a) - analysis.class_accuracy(b) for a, b in zip(counts, of_alone)]
    assert method["per_class"]["against"] == "student alone"
    assert method["per_class"]["difference"] == pytest.approx(((gains[0] + gains[1]) / 2).tolist())
    for name, others in (("student", student), ("student alone", alone)):
        found = method["agreement"]["teacher"][name]
        assert found["top1"]["values"] == pytest.approx([analysis.agreement(*pair) for pair in zip(teacher, others)])
        kl = [float(analysis.divergences(*pair).mean()) for pair in zip(teacher, others)]
        assert found["kl"]["values"] == pytest.approx(kl, rel=1e-4)
        mean = sum(analysis.correlation_difference(*pair) for pair in zip(teacher, others)) / 2
        shown = torch.tensor(method["correlation"]["teacher"][name], dtype=torch.float64)
        torch.testing.assert_close(shown, mean, atol=1e-5, rtol=0)
        # Without a validation split the temperature is of half of the test set, and the errors are of the other.
        of = method["calibration"][name]
        assert of["fitted_on"] == "half of the test set" and of["pictures"] == 180
        for i, (one, those) in enumerate(zip(others, labels)):
            temperature = analysis.best_temperature(one[::2], those[::2])
            assert of["temperature"]["values"][i] == pytest.approx(temperature, rel=1e-2)
            for when, at in (("before", 1.0), ("after", of["temperature"]["values"][i])):
                ece = analysis.reliability(one[1::2], those[1::2], at).ece
                assert of[when]["ece"]["values"][i] == pytest.approx(ece, abs=1e-3)
                nll = float(nn.functional.cross_entropy(one[1::2].double() / at, those[1::2]))
                assert of[when]["nll"]["values"][i] == pytest.approx(nll, rel=1e-4)
    for row in method["softened"]:
        i = row["position"]
        assert row["label"] == labels[1][i]
        for who, of in (("teacher", teacher[1]), ("student", student[1])):
            for t, values in zip((1, 4, 16), row["probabilities"][who]):
                assert values == pytest.approx(analysis.softened(of[[i]], t)[0].tolist(), abs=1e-5)


def test_stages_are_compared(home, runs, numbers):
    """All test pictures are, each map as it is: they are few and small."""
    found = numbers["methods"]["kd"]["stages"]
    assert found["layers"] == {name: ["stages.0", "stages.1", "embedding"] for name in found["layers"]}

    def grams(config, weights, role="student"):
        network = rebuild(config, home.registry, find_project().data, str(weights), role, torch.device("cpu"))
        said = []
        for module in (*network.network.stages, network.network.avgpool):
            module.register_forward_hook(lambda module, inputs, output: said.append(output.flatten(1)))
        with torch.no_grad():
            network.logits(digits(None, None, "test").images)
        return [centred_gram(x) for x in said]

    of_seeds = []
    for run in runs:
        config = load_config(run.config_file, registry=home.registry).config
        student, teacher = grams(config, run.weights()), grams(config, config.teacher.checkpoint, "teacher")
        of_seeds.append([[cka(a, b) for b in student] for a in teacher])
    expected = torch.tensor(of_seeds).mean(0)
    torch.testing.assert_close(torch.tensor(found["cka"]["teacher"]["student"]), expected, atol=1e-4, rtol=0)
    assert list(found["cka"]["teacher"]) == ["student", "student alone"]


def test_maps_are_of_the_last_seed(runs, numbers):
    found = numbers["methods"]["kd"]["map"]
    assert list(found["places"]) == ["teacher", "student alone", "student"]
    assert {len(places) for places in found["places"].values()} == {len(found["labels"])} == {40}
    assert len(set(found["labels"])) == 10


def test_the_validation_split_calibrates_the_student(home, teacher_weights, tmp_path):
    """And never the teacher, which may have been trained on it."""
    teacher = {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}
    run = home.run(
        "validated",
        run={"dir": str(tmp_path)},
        data={"samples": 200, "validation": 0.3},
        teacher=teacher,
        losses={"ce": {}, "kd": {}},
    )
    page, left_out = report([run], None, home.registry, find_project().data)
    assert page == run.path / "report" / "report.html" and not left_out
    found = json.loads((page.parent / "report.json").read_text())
    of = found["methods"]["validated"]["calibration"]
    assert of["teacher"]["fitted_on"] == "half of the test set" and of["teacher"]["pictures"] == 180
    assert of["student"]["fitted_on"] == "the validation split" and of["student"]["pictures"] == 360
    config = load_config(run.config_file, registry=home.registry).config
    temperature = analysis.best_temperature(*logits_of(home, config, run.weights(), split="validation"))
    assert of["student"]["temperature"]["values"] == pytest.approx([temperature], rel=1e-2)
    assert found["methods"]["validated"]["per_class"]["against"] == "teacher"
    assert len(found["curves"][0]["validation"]["epochs"]) == 2
    assert of["student"]["temperature"]["deviation"] is None and Page(page).sections == SECTIONS


def test_two_methods(home, runs, tmp_path):
    """One of them without a teacher: the page says what it lacks."""
    other = home.run("plain", run={"dir": str(tmp_path)})
    page, left_out = report([*runs, other], tmp_path / "both", home.registry, find_project().data)
    assert left_out == ["plain: agreement, correlation, similarity of stages, softened outputs: it has no teacher"]
    found = json.loads((tmp_path / "both" / "report.json").read_text())
    assert list(found["methods"]) == ["kd", "plain"] and found["left_out"] == left_out
    assert [row["what"] for row in found["table"]] == ["teacher", "student alone", "kd", "plain"]
    assert found["methods"]["plain"]["per_class"]["against"] is None
    read = Page(page)
    assert read.sections == SECTIONS and left_out[0] in read.text


def test_several_teachers(home, runs, teacher_weights, tmp_path):
    """Each with its own numbers; their average has a place in the table."""
    other = {"model": "convnet", "widths": [4, 8], "checkpoint": str(runs[0].weights())}
    teachers = {"big": {"model": "convnet", "widths": [16, 32], "checkpoint": teacher_weights}, "small": other}
    losses = {"ce": {}, "kd": {"teacher": "average"}}
    run = home.run("average", run={"dir": str(tmp_path)}, teachers=teachers, losses=losses)
    page, left_out = report([run], None, home.registry, find_project().data)
    found = json.loads((page.parent / "report.json").read_text())
    assert not left_out and Page(page).sections == SECTIONS
    names = ["teacher big", "teacher small", "teacher average", "average"]
    assert [row["what"] for row in found["table"]] == names
    assert found["table"][1]["runs"] == ["kd-seed0"] and found["table"][2]["macs"] is None
    method = found["methods"]["average"]
    assert list(method["agreement"]) == list(method["correlation"]) == list(method["stages"]["cka"]) == names[:2]
    assert list(method["calibration"]) == ["student", *names[:2]]


@pytest.fixture(scope="module")
def foldered(home, tmp_path_factory):
    """A run on two digits in folders whose names would be tags."""
    path = tmp_path_factory.mktemp("pictures")
    for split, most in (("train", 40), ("test", 15)):
        source = digits(None, None, split)
        for label, name in enumerate(NASTY):
            (path / split / name).mkdir(parents=True)
            for i in (source.labels == label).nonzero()[:most, 0].tolist():
                Image.fromarray(source.images[i, 0].numpy()).save(path / split / name / f"{i}.png")
    data = {"name": "folder", "path": str(path), "channels": 1, "samples": None}
    run = home.run("folders", run={"dir": str(home.path)}, data=data)
    return RunFolder(run.path.rename(run.path.with_name("a&b<c>")))


def test_names_are_text(home, foldered, tmp_path):
    page, _ = report([foldered], tmp_path, home.registry, find_project().data)
    read = Page(page)  # which fails at a tag that is none of ours
    assert "a&b<c>" in read.text and "a&b<c>" not in page.read_text()
    found = json.loads((tmp_path / "report.json").read_text())
    assert sorted(found["methods"]["a&b<c>"]["classes"]) == sorted(NASTY)
    assert all(name in read.text and name not in page.read_text() for name in NASTY)
    assert all(file.name.isascii() and "<" not in file.name for file in tmp_path.iterdir())


def test_data_that_is_not_here(home, foldered, tmp_path):
    """Last of those that use the folder: it is moved away."""
    place = Path(load_config(foldered.config_file, registry=home.registry).config.data.path)
    place.rename(place.with_name("moved"))
    page, (why,) = report([foldered], tmp_path, home.registry, find_project().data)
    assert why.startswith("a&b<c>: all that needs the test pictures: ") and str(place) in why
    read = Page(page)
    assert read.sections == ["results", "learning"] and why in read.text and len(read.pictures) == 2


def copy_of(run: RunFolder, tmp_path) -> RunFolder:
    """With the run of the student alone beside it."""
    alone = run.summary["alone"]["name"]
    for name in (run.name, alone):
        shutil.copytree(run.path.parent / name, tmp_path / name)
    return RunFolder(tmp_path / run.name)


def test_other_pictures(home, runs, tmp_path):
    run = copy_of(runs[0], tmp_path)
    (run.path / "data.json").write_text(json.dumps({"fingerprint": "other", "recipe": "same"}))
    page, left_out = report([run], None, home.registry, find_project().data)
    assert any("the pictures are others than those that the run began with" in line for line in left_out)
    assert Page(page).sections == ["results", "learning"]


def test_a_teacher_that_is_not_here(home, runs, tmp_path):
    run = copy_of(runs[0], tmp_path)
    config = (run.path / "config.yaml").read_text()
    there = load_config(run.config_file, registry=home.registry).config.teacher.checkpoint
    (run.path / "config.yaml").write_text(config.replace(there, str(tmp_path / "gone.safetensors")))
    page, (why,) = report([run], None, home.registry, find_project().data)
    assert why.startswith("kd-seed0: all that shows teacher or compares with it: ")
    assert "gone.safetensors" in why
    read = Page(page)
    assert read.sections == ["results", "learning", "classes", "calibration", "embeddings"]
    teacher = json.loads((page.parent / "report.json").read_text())["table"][0]
    assert teacher["last"]["mean"] == run.summary["teacher"]["top1"] and teacher["macs"] is None is teacher["bytes"]


def test_a_student_alone_that_is_not_here(home, runs, tmp_path):
    run = copy_of(runs[0], tmp_path)
    (run.path.parent / run.summary["alone"]["name"] / "student.safetensors").unlink()
    page, (why,) = report([run], None, home.registry, find_project().data)
    assert "the student alone and comparison with it: " in why and "student.safetensors" in why
    (method,) = json.loads((page.parent / "report.json").read_text())["methods"].values()
    assert method["per_class"]["against"] == "teacher"
    assert Page(page).sections == SECTIONS


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("status.json", '{"state": "interrupted"}', "is not finished .its state: interrupted.*kdray resume kd-seed0"),
        ("summary.json", '{"last": {}}', "summary.json is damaged .at last.top1."),
        ("summary.json", "[", "summary.json is damaged or absent"),
        ("metrics.jsonl", '{"kind": "epoch", "step": 3, "epoch": 1}\n', "metrics.jsonl is damaged .at loss."),
        ("metrics.jsonl", "", "holds no epoch"),
        ("config.yaml", "name: [", "config.yaml"),
        ("student.safetensors", "nothing", "student.safetensors"),
    ],
)
def test_runs_that_cannot_be_read(home, runs, tmp_path, file, content, message):
    run = copy_of(runs[0], tmp_path)
    (run.path / file).write_text(content)
    with pytest.raises(ConfigError, match=message):
        report([run], tmp_path / "out", home.registry, find_project().data)
    assert not (tmp_path / "out").exists()


def test_a_run_named_twice(home, runs):
    with pytest.raises(ConfigError, match="kd-seed0 is named twice"):
        report([*runs, runs[0]], None, home.registry, find_project().data)


def test_a_folder_that_cannot_be_made(home, runs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to .*--output"):
        report(runs[:1], tmp_path / "file" / "out", home.registry, find_project().data)
