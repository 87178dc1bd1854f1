"""What is wrong in a config is told with file, line and column, exit 2, and nothing is written."""

import pytest

PLACES = {
    "unknown key": ("widths:", "widht:", "edited.yaml:3:27: student: unknown key 'widht'. Did you mean 'widths'?"),
    "unknown section": ("scale:", "scle:", "edited.yaml:7:1: unknown key 'scle'. Did you mean 'scale'?"),
    "unknown model": ("convnet", "convnett", "student.model: unknown model 'convnett'. Did you mean 'convnet'?"),
    "unknown method": ("ce:", "cee:", "losses.cee: unknown distiller 'cee'. Did you mean 'ce'?"),
    "unknown data set": ("digits", "digit", "data.name: unknown data set 'digit'. Did you mean 'digits'?"),
    "unknown optimizer": ("sgd", "sdg", "optimizer.name: unknown optimizer 'sdg'. Did you mean 'sgd'?"),
    "key twice": ("lr: 0.05", "lr: 0.05, lr: 0.1", "optimizer: the key 'lr' stands twice"),
    "text that looks like a number": ("0.05", '"0.1"', "optimizer.lr: must be a number, not the text '0.1'"),
    "text": ("0.05", "abc", "optimizer.lr: must be a number, not the text 'abc'"),
    "negative": ("0.05", "-1", "optimizer.lr: must be greater than 0, not -1"),
    "not a number": ("0.05", ".nan", "optimizer.lr: a number must be finite, not .nan"),
    "infinite": ("0.05", ".inf", "optimizer.lr: a number must be finite, not .inf"),
    "negative weight": ("ce: {}", "ce: {weight: -1}", "losses.ce.weight: must be at least 0, not -1"),
    "part of an epoch": ("epochs: 1", "epochs: 1.5", "schedule.epochs: must be a whole number, not 1.5"),
    "no list": ("[4]", "4", "student.widths: must be a list, not 4"),
    "not YAML": ("{epochs: 1}", "{epochs: 1", "edited.yaml:7:6:"),
}


@pytest.mark.parametrize("place", PLACES)
def test_is_refused(desk, place):
    old, new, message = PLACES[place]
    text = desk.refused("train", desk.edited(old, new))
    assert text.startswith("error: edited.yaml:")
    assert message in text


def test_a_number_with_an_exponent_is_a_number(desk):
    shown = desk("show", desk.edited("0.05", "1e-3")).out
    assert "lr: 0.001 " in shown


def test_all_at_once(desk):
    config = desk.config(student={"model": "convnet", "widht": 4}, optimizer={"lr": -1})
    message = desk.refused("train", config, "data.batch_sise=4")
    for part in ("'widht'", "optimizer.lr: must be greater", "command line: data: unknown key 'batch_sise'"):
        assert part in message


@pytest.mark.parametrize("name", ["a/b", "../up", "", ".", "a b", "x" * 101])
def test_a_name_that_is_no_folder_name(desk, name):
    assert "run.name: must match" in desk.refused("train", desk.config(), "--name", name)


@pytest.mark.parametrize("name", ["5", "null", "1e5", "true"])
def test_a_name_is_text_whatever_it_looks_like(desk, name):
    plan = desk("train", desk.config(), "--name", name, "--dry-run")
    assert plan.code == 0 and plan.out.startswith(f"{name}:")


def test_a_file_that_is_not_there(desk):
    desk.config("mine.yaml")
    assert "there is no file mine.yml. Did you mean 'mine.yaml'?" in desk.refused("train", "mine.yml")
    assert "cannot read .: Is a directory" in desk.refused("train", ".")


def test_what_is_no_override(desk):
    assert "'fast' is not an override: write section.key=value" in desk.refused("train", desk.config(), "fast")


@pytest.mark.parametrize("seeds", ["a", "0,", "1.5", "0,0", "", "0,1,,2"])
def test_seeds_that_are_none(desk, seeds):
    assert "--seeds" in desk.refused("train", desk.config(), "--seeds", seeds)


def test_a_negative_seed(desk):
    assert "seed: must be at least 0, not -1" in desk.refused("train", desk.config(), "--seeds=-1")


def test_a_batch_that_cannot_be_split(desk):
    message = desk.refused("train", desk.config(), "--num-workers", 3)
    assert "50 pictures cannot be split evenly over 3 workers" in message
    assert "data.batch_size=48 or 51; or --num-workers 2" in message


def test_kdray_toml(desk):
    desk.write("kdray.toml", '[paths]\nrunz = "x"\n')
    assert "paths: unknown key 'runz'. Did you mean 'runs'?" in desk.refused("train", desk.config())


def test_a_loss_without_its_teacher(desk):
    message = desk.refused("train", desk.config(losses={"ce": {}, "kd": {}}))
    assert "losses.kd: this loss needs a teacher" in message and "`teacher:`" in message


def test_a_teacher_without_a_loss(desk):
    teacher = {"model": "convnet", "widths": [4], "checkpoint": "any.pt"}
    assert "none of the losses (ce) looks at this teacher" in desk.refused("train", desk.config(teacher=teacher))


def teacher_recipe(**student):
    return {"model": "convnet", "train": "recipe.yaml", **student}


def test_a_teacher_recipe_that_is_not_there(desk):
    config = desk.config(teacher=teacher_recipe(widths=[8]), losses={"kd": {}})
    desk.config("recip.yaml")
    assert "Did you mean 'recip.yaml'?" in desk.refused("train", config)


def test_a_teacher_recipe_that_is_wrong(desk):
    config = desk.config(teacher=teacher_recipe(widths=[8]), losses={"kd": {}})
    desk.config("recipe.yaml", optimizer={"lrr": 0.1})
    assert "recipe.yaml:13:3: optimizer: unknown key 'lrr'" in desk.refused("train", config)


def test_a_teacher_recipe_for_another_network(desk):
    config = desk.config(teacher=teacher_recipe(widths=[8]), losses={"kd": {}})
    desk.config("recipe.yaml")
    message = desk.refused("train", config)
    assert "teacher.widths is [8]" in message and "widths [4]" in message
