"""`kdray compare`: two recipes side by side: what differs in their configs, what they came to, and whether that may be
chance."""

from __future__ import annotations

from statistics import stdev

from ..config.dump import plain
from ..errors import ConfigError
from ..registry import Registry
from ..run.folder import RunFolder
from .finished import Finished, Method, methods_of, read_all
from .report_table import spread, student_row

CONFIDENCE = 0.95
"""Of the interval around a difference."""
SAME = 1e-12
"""A deviation of differences of shares up to which they are one number: rounding of binary fractions."""
COLUMNS = ("model", "parameters", "bytes", "pictures_per_second", "last", "best", "best_by")
"""What is taken over of a report's row."""


Given = list[tuple[str, list[RunFolder]]]
"""The runs that each name of the command line stands for."""


def compare(given: Given, registry: Registry) -> dict:
    """Two names are the two sides; of more names the two recipes are, which differ by more than the seed.

    sides: label, runs, seeds and results of each; differences: keys of their configs with the values of both; tests: by
    epoch (`last`, `best`) the second side less the first, paired by seed; notes: what else one should know.
    Raises ConfigError for runs that are not finished, damaged or named twice, and where there are not two sides."""
    a, b = sides(given, registry)
    notes = []
    if a.runs[0].run.data != b.runs[0].run.data:
        notes.append("the data are others; of other test sets, accuracies cannot be compared")
    if a.runs[0].summary["best"]["split"] != b.runs[0].summary["best"]["split"]:
        notes.append("one best epoch was chosen on a validation split, one on the test set, which flatters it")
    return {
        "sides": [_side(one) for one in (a, b)],
        "differences": differences(a, b),
        "tests": {
            "last": paired(a, b, lambda one: one.summary["last"]["top1"]),
            "best": paired(a, b, lambda one: one.summary["best"]["test_top1"]),
        },
        "notes": notes,
    }


def sides(given: Given, registry: Registry) -> list[Method]:
    everything = read_all([run for _, runs in given for run in runs], registry)
    if len(given) == 2:
        found = [_one(name, [one for one in everything if one.run in runs]) for name, runs in given]
        if found[0].label == found[1].label:  # of two folders
            found = [Method(name, method.runs) for (name, _), method in zip(given, found)]
    else:
        found = methods_of(everything)
        if len(found) != 2:
            groups = "; ".join(f"{method.label} ({', '.join(one.run.name for one in method.runs)})" for method in found)
            raise ConfigError(
                f"two recipes are compared, and these runs are of {len(found)}: {groups}. Name two runs, or the seeds "
                "of two recipes; `kdray report` shows any number of them"
            )
    for method in found:
        _refuse_a_seed_twice(method)
    return found


def _one(name: str, runs: list[Finished]) -> Method:
    """What one name of the command line stands for."""
    methods = methods_of(runs)
    if len(methods) > 1:
        groups = "; ".join(", ".join(one.run.name for one in method.runs) for method in methods)
        raise ConfigError(f"{name} stands for runs of {len(methods)} recipes: {groups}. Name the runs that you mean")
    return methods[0]


def _refuse_a_seed_twice(method: Method) -> None:
    by_seed: dict[int, str] = {}
    for one in method.runs:
        if (other := by_seed.setdefault(one.config.seed, one.run.name)) != one.run.name:
            raise ConfigError(
                f"{other} and {one.run.name} are one recipe with one seed, {one.config.seed}, and seeds are paired: "
                "leave one of them out"
            )


def _side(method: Method) -> dict:
    row = student_row("student", method.label, method.runs, {})
    return {
        "label": method.label,
        "runs": row["runs"],
        "seeds": _seeds(method),
        **{key: row[key] for key in COLUMNS},
    }


def _seeds(method: Method) -> list[int]:
    return [one.config.seed for one in method.runs]


def differences(a: Method, b: Method) -> list[dict]:
    """`key`, the dotted path of a leaf, with the value of the first side (`a`) and of the second (`b`), where they have
    one, by section. Left out are names, seeds where a side has several, and empty values of what one side has alone."""
    left_out = {"name", "run.name", *(["seed"] if len(a.runs) > 1 or len(b.runs) > 1 else [])}
    of_a, of_b = (dict(_leaves(plain(method.runs[0].config))) for method in (a, b))
    keys = list(dict.fromkeys([*of_a, *of_b]))
    sections = list(dict.fromkeys(key.split(".")[0] for key in keys))
    rows = []
    for key in sorted(keys, key=lambda key: sections.index(key.split(".")[0])):
        values = {side: of[key] for side, of in (("a", of_a), ("b", of_b)) if key in of}
        same = values["a"] == values["b"] if len(values) == 2 else next(iter(values.values())) in (None, {}, [])
        if key not in left_out and not same:
            rows.append({"key": key, **values})
    return rows


def _leaves(value, path: str = ""):
    """(dotted path, value) of all that is no section; an empty section counts as a value."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else key)


def paired(a: Method, b: Method, pick) -> dict:
    """The second side less the first, by seed: seeds; difference, a spread, None without a common seed; interval,
    where the mean difference lies with `CONFIDENCE`; t and p of a two-sided paired t-test; no_test: why there is none,
    and interval, t and p are None."""
    of_a, of_b = ({one.config.seed: pick(one) for one in method.runs} for method in (a, b))
    seeds = sorted(of_a.keys() & of_b.keys())
    values = [of_b[seed] - of_a[seed] for seed in seeds]
    found = {
        "seeds": seeds,
        "difference": spread(values) if values else None,
        **{"interval": None, "t": None, "p": None, "no_test": None},
    }
    if len(seeds) < 2:
        found["no_test"] = f"it needs two seeds at least that both sides have; {_have(a)}, {_have(b)}"
    elif stdev(values) < SAME:
        found["no_test"] = "every seed has the same difference, and without deviation there is nothing to test it with"
    else:
        from scipy.stats import ttest_rel  # it takes a second

        test = ttest_rel([of_b[seed] for seed in seeds], [of_a[seed] for seed in seeds])
        interval = test.confidence_interval(CONFIDENCE)
        found |= {"interval": [float(x) for x in interval], "t": float(test.statistic), "p": float(test.pvalue)}
    return found


def _have(method: Method) -> str:
    seeds = _seeds(method)
    return f"{method.label} has seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
