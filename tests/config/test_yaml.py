"""YAML 1.2 scalars, and what is refused."""

import pytest

from kdray.config.dump import write
from kdray.config.yaml import Mark, read
from kdray.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e4", 5e4),
        (".5", 0.5),
        ("-1.", -1.0),
        ("5.0e-4", 5e-4),
        ("010", 10),
        ("0o17", 15),
        ("0x1f", 31),
        ("-7", -7),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-02", "2024-01-02"),
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("nan", "nan"),
    ],
)
def test_scalars(text, value):
    got = read(f"a: {text}", "f").value["a"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999"])
def test_only_finite_numbers(text):
    (problem,) = read(f"a: {text}", "f").problems
    assert str(problem) == f"f:1:4: a: a number must be finite, not {text}"


def test_marks_of_keys_and_values():
    doc = read("a:\n  b: [1,\n    2]\n", "f")
    assert doc.keys[("a", "b")] == Mark("f", 2, 3)
    assert doc.values[("a", "b")] == Mark("f", 2, 6)
    assert doc.values[("a", "b", 1)] == Mark("f", 3, 5)


def test_equal_keys():
    doc = read("a: 1\nb: 2\na: 3\n", "f")
    assert [str(p) for p in doc.problems] == ["f:3:1: the key 'a' stands twice, in lines 1 and 3: remove one"]


def test_anchors():
    doc = read("a: &x {b: 1}\nc: *x\n", "f")
    assert doc.value == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize("text", ["1: x", "true: x", "[a]: x", "<<: {a: 1}", ".nan: x"])
def test_keys_are_text(text):
    assert read(text, "f").problems


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a:\n\tb: 1\n", "f:2:1: found character '\\t' that cannot start any token while scanning"),
        ("a: b: c\n", "f:1:5: mapping values are not allowed here"),
        ("a: [1, 2\n", "f:2:1: expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "f:2:1: but found another document"),
        ("a: !!python/object/apply:os.system [x]\n", "f:1:4: tags are not allowed: !!python/object/apply:os.system"),
        ("a: !x 1\n", "f:1:4: tags are not allowed: !x"),
        ("a: &x [*x]\n", "f:1:4: an anchor that contains itself"),
        ("a: *x\n", "f:1:4: found undefined alias"),
        ("a: '\x07'\n", "f:1:5: the character U+0007 is not allowed"),
        (b"a: \xff\n", "f: not a text file in UTF-8"),
    ],
)
def test_what_is_not_read(text, start):
    with pytest.raises(ConfigError) as error:
        read(text, "f")
    assert str(error.value).startswith(start)


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "- " * 100, "a: " + "{a: " * 100 + "1" + "}" * 100])
def test_nesting_has_an_end(text):
    with pytest.raises(ConfigError, match=r"^f:1:\d+: more than 50 levels of nesting"):
        read(text, "f")


def test_aliases_do_not_nest_deeper():
    chain = "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 1}]" for i in range(60))
    with pytest.raises(ConfigError, match="more than 50 levels of nesting"):
        read(chain, "f")


def test_characters_that_are_none():
    doc = read('a: "\\ud83d\\ude00"\nb: "\\ud83d"\n"\\ude00": 1\nc: "x\\0"\nd: 9999999999999999999\n', "f")
    assert doc.value["a"] == "😀"
    lines = [str(problem) for problem in doc.problems]
    assert [line.partition(": ")[0] for line in lines] == ["f:2:4", "f:3:1", "f:4:4", "f:5:4"]
    assert "needs its other half" in lines[0] and "U+0000" in lines[2] and "fit into 64 bits" in lines[3]


def test_aliases_do_not_explode():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match="more than 20,000 values"):
        read("\n".join(lines), "f")


def test_written_values_come_back():
    texts = ["1e-3", "010", "yes", "1:30", "<<", "=", "a: b", "# x", "", " x ", "a\nb\n\n c", "null", "0o17", ".5", "é"]
    value = {"texts": texts, "floats": [1e-5, 1e22, 0.1, 3.0], "more": {"n": None, "b": True, "i": 3, "e": {}, "l": []}}
    value["deep"] = [{"crop": {"padding": 4}}, "x"]
    value |= {f"k{i}": text for i, text in enumerate(texts)}
    again = read(write(value), "f")
    assert again.value == value
    assert not again.problems
