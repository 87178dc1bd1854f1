"""Ways to spoil a good file: in its bytes, in its text, in the tree of its values."""

from __future__ import annotations

import copy
import json

from hypothesis import strategies as st

INTEGERS = st.sampled_from([0, 1, -1, 2, 7, 255, 2**31, 2**63, -(2**63) - 1, 10**30])
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "\0", "~", "~nobody/x", "/", ".", "..", "a\nb", "planted:factory", "x" * 5000, "\ud800", "é", "NaN"]
    ),
)
FLOATS = st.sampled_from([0.5, -1.5, 1e308, float("nan"), float("inf"), 1e-320])


def _deep(levels: int, key: str | None) -> object:
    value: object = 0
    for _ in range(levels):
        value = {key: value} if key else [value]
    return value


DEEP = st.builds(_deep, st.sampled_from([3, 50, 400]), st.sampled_from([None, "a"]))
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def spoiled_bytes(draw, good: list[bytes], tokens: list[bytes] = (), most: int = 4) -> bytes:
    """One of the good files with some damage: cut, flipped, overwritten, doubled, spliced, or with a token in it."""
    data = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([1, 2, 8, 64, 1000])))
        match draw(st.sampled_from(["cut", "flip", "write", "insert", "remove", "double", "splice", "token", "token"])):
            case "cut":
                data = data[:at]
            case "flip" if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
            case "write":
                data = data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[end:]
            case "insert":
                data = data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
            case "remove":
                data = data[:at] + data[end:]
            case "double":
                data = data[:end] + data[at:]
            case "splice":
                other = draw(st.sampled_from(good))
                data = data[:at] + other[draw(st.integers(0, len(other))) :]
            case "token" if tokens:
                data = data[:at] + draw(st.sampled_from(tokens)) + data[end if draw(st.booleans()) else at :]
    return data


@st.composite
def spoiled_tree(draw, good: list, most: int = 2):
    """One of the good values with nodes replaced by junk, taken away, or added."""
    tree = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(tree))
        if not places:
            return draw(JUNK)
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["junk", "junk", "junk", "remove", "add", "deep"])):
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(TEXTS)] = draw(JUNK)
            case "deep":
                holder[key] = draw(DEEP)
            case _:
                holder[key] = draw(JUNK)
    return tree


def _places(tree):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def spoiled_json(good: list) -> st.SearchStrategy[bytes]:
    """Files of JSON: with damaged bytes, or well formed with another content than they should have."""
    texts = [json.dumps(value, indent=2).encode() for value in good]
    tokens = [b"NaN", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"null", b'"\\ud800"', b"\xff\xfe", b"\0"]
    trees = st.one_of(spoiled_tree(good), JUNK).map(lambda tree: json.dumps(tree).encode())
    return st.one_of(spoiled_bytes(texts, tokens), trees)
