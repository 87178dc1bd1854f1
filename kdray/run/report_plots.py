"""Pictures of a report, from its numbers.

accuracy.png, terms.png      learning curves of all rows
1-NAME-classes.png           of the first method: accuracy of each class, less that of another network
1-NAME-confusion.png         what pictures of each class were taken for
1-NAME-calibration.png       accuracy by confidence
1-NAME-correlation.png       difference of the correlations between classes, teacher and student
1-NAME-stages.png            how alike stages of teacher and student are
1-NAME-map.png               embeddings in two dimensions
1-NAME-softened.png          outputs for single pictures at several temperatures
"""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

NAMED = 40
"""Classes up to which each has its name at an axis."""
WRITTEN = 12
"""Classes up to which a matrix has its numbers in it."""
ENDS = 15
"""Classes at either end that are shown where there are more than `NAMED`."""
LIKELY = 10
"""Classes that are shown of a picture's outputs: all where there are no more, else the teacher's likeliest."""
BLUE, ORANGE, GREY, RED, LIGHT_BLUE, LIGHT_RED = "#3b6fb6", "#e08214", "#8a8f98", "#c8453b", "#a9c7ec", "#efc2be"
COLOURS = (BLUE, ORANGE, "#4f9d69", "#8e5ea2", RED, "#17a2b8", "#b5892f", "#d66fa8")
STYLE = {
    "text.parse_math": False,  # a class may be called $5 to $10
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
}


def draw(numbers: dict, shown: dict[str, Tensor], folder: Path) -> dict:
    """Write the pictures into `folder`. shown: by method the test pictures of its softened outputs, uint8 (n, C, H, W).

    Returns the names of the files: `accuracy`, `terms`, and by method's label those of its own."""
    with matplotlib.rc_context(STYLE):
        found = {"accuracy": "accuracy.png", "terms": "terms.png", "methods": {}}
        _save(_accuracy(numbers), folder / found["accuracy"])
        _save(_terms(numbers["curves"]), folder / found["terms"])
        for number, (label, method) in enumerate(numbers["methods"].items(), 1):
            figures = _of_method(method, numbers, shown.get(label))
            stem = f"{number}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)}"
            found["methods"][label] = {what: f"{stem}-{what}.png" for what in figures}
            for what, figure in figures.items():
                _save(figure, folder / f"{stem}-{what}.png")
    return found


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=130)


def _of_method(method: dict, numbers: dict, pictures: Tensor | None) -> dict[str, Figure]:
    if "confusion" not in method:
        return {}
    names = [_short(name) for name in method["classes"]]
    found = {"classes": _classes(method["per_class"], names)} if method["per_class"]["against"] else {}
    found["confusion"] = _confusion(np.array(method["confusion"], dtype=float), names)
    found["calibration"] = _calibration(method["calibration"])
    if method["correlation"]:
        found["correlation"] = _correlation(method["correlation"], names)
    if any(method["stages"]["cka"].values()):
        found["stages"] = _stages(method["stages"])
    if method["map"]["places"]:
        found["map"] = _map(method["map"], names)
    if pictures is not None:
        found["softened"] = _softened(method["softened"], pictures, names, numbers["temperatures"])
    return found


def _percent(share: float, _: int) -> str:
    return f"{round(100 * share, 6):g}%"


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _end(layer: str, most: int = 14) -> str:
    """Layers of one network begin alike."""
    return layer if len(layer) <= most else "…" + layer[1 - most :]


# -- learning curves ---------------------------------------------------------------------------------------------------


def _colours(curves: list[dict]) -> dict[str, str]:
    """The students alone are grey."""
    own = [line["what"] for line in curves if not line["alone"]]
    return {line["what"]: GREY for line in curves} | {what: COLOURS[i % len(COLOURS)] for i, what in enumerate(own)}


def _line(plot, curve: dict, **style) -> None:
    """A mean, and a band of one deviation around it."""
    epochs, mean = curve["epochs"], np.array(curve["mean"])
    plot.plot(epochs, mean, linewidth=1.6, marker="o" if len(epochs) == 1 else None, **style)
    deviation = np.array([one or 0.0 for one in curve["deviation"]])
    if deviation.any():
        plot.fill_between(epochs, mean - deviation, mean + deviation, color=style["color"], alpha=0.18, linewidth=0)


def _accuracy(numbers: dict) -> Figure:
    curves, figure = numbers["curves"], Figure(figsize=(8, 4.2), layout="constrained")
    plot, colours = figure.add_subplot(), _colours(numbers["curves"])
    for line in curves:
        _line(plot, line["test"], color=colours[line["what"]], label=line["what"])
        if line["validation"]["epochs"]:
            what = f"{line['what']}, validation"
            _line(plot, line["validation"], color=colours[line["what"]], linestyle=":", label=what)
    for row in numbers["table"]:
        if row["role"] == "teacher":
            plot.axhline(row["last"]["mean"], color="#333333", linestyle="--", linewidth=1)
            place = (1, row["last"]["mean"])
            plot.annotate(
                row["what"], place, (-4, 3), plot.get_yaxis_transform(), "offset points", ha="right", fontsize=8
            )
    plot.set_xlabel("epoch")
    plot.set_ylabel("accuracy (test unless said)")
    plot.yaxis.set_major_formatter(_percent)
    _epochs(plot)
    figure.legend(*plot.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _terms(curves: list[dict]) -> Figure:
    names = list(dict.fromkeys(name for line in curves for name in line["terms"]))
    rows, columns = ceil((len(names) + 1) / 3), min(3, len(names) + 1)
    figure = Figure(figsize=(8, 0.6 + 2.3 * rows), layout="constrained")
    plots, colours = figure.subplots(rows, columns, squeeze=False).flat, _colours(curves)
    for plot, name in zip(plots, [None, *names]):
        for line in curves:
            if curve := line["terms"].get(name) if name else line["loss"]:
                _line(plot, curve, color=colours[line["what"]], label=line["what"])
        plot.set(title=name or "loss (weighted sum)", xlabel="epoch")
        _epochs(plot)
    for plot in list(figure.axes)[len(names) + 1 :]:
        plot.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _epochs(plot) -> None:
    plot.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    plot.grid(axis="y")


# -- what a method's students answer -----------------------------------------------------------------------------------


def _classes(per_class: dict, names: list[str]) -> Figure:
    known = [i for i, value in enumerate(per_class["difference"]) if value is not None]
    order = sorted(known, key=lambda i: -per_class["difference"][i])
    if len(order) > NAMED:
        order = order[:ENDS] + order[-ENDS:]
    else:
        order = known
    values = [per_class["difference"][i] for i in order]
    errors = [per_class["deviation"][i] or 0.0 for i in order] if per_class["deviation"] else None
    figure = Figure(figsize=(8, 1.2 + 0.23 * len(order)), layout="constrained")
    plot = figure.add_subplot()
    colours = [BLUE if value >= 0 else RED for value in values]
    plot.barh(range(len(order)), values, xerr=errors, color=colours, height=0.7, error_kw={"ecolor": GREY})
    plot.axvline(0, color="#333333", linewidth=0.8)
    plot.set_yticks(range(len(order)), [names[i] for i in order])
    plot.set_ylim(len(order) - 0.4, -0.6)
    plot.set_xlabel(f"accuracy of a class: student less the {per_class['against']}")
    plot.xaxis.set_major_formatter(_percent)
    plot.grid(axis="x")
    return figure


def _confusion(counts: np.ndarray, names: list[str]) -> Figure:
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    plot = figure.add_subplot()
    image = plot.imshow(shares, cmap="Blues", norm=matplotlib.colors.PowerNorm(0.5, 0, 1))
    if len(names) <= WRITTEN:
        for (i, j), share in np.ndenumerate(shares):
            if share:
                plot.text(
                    *(j, i, f"{share:.0%}" if share >= 0.005 else "<1%"),
                    **{"ha": "center", "va": "center", "fontsize": 7.5, "color": "white" if share > 0.3 else "black"},
                )
    _class_axes(plot, names)
    plot.set_xlabel("taken for")
    plot.set_ylabel("class")
    figure.colorbar(image, ax=plot, format=FuncFormatter(_percent), shrink=0.8, label="share of the class's pictures")
    return figure


def _class_axes(plot, names: list[str]) -> None:
    named = names if len(names) <= NAMED else []
    _named_axes(plot, named, named)


def _named_axes(plot, across: list[str], up: list[str]) -> None:
    upright = max(map(len, across), default=0) > 3
    plot.set_xticks(range(len(across)), across, rotation=90 if upright else 0, fontsize=8)
    plot.set_yticks(range(len(up)), up, fontsize=8)
    plot.spines[:].set_visible(False)
    plot.tick_params(length=0)


def _calibration(calibration: dict) -> Figure:
    panels = [
        ("student", "before"),
        ("student", "after"),
        *((name, "before") for name in calibration if name != "student"),
    ]
    columns = min(4, len(panels))
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(8, 0.5 + (8 / columns) * 1.15 * rows), layout="constrained")
    for i, (name, when) in enumerate(panels):
        plot = figure.add_subplot(rows, columns, i + 1)
        one = calibration[name]
        bins, ece = one[when]["bins"], one[when]["ece"]["mean"]
        width = 1 / len(bins["counts"])
        some = [k for k, count in enumerate(bins["counts"]) if count]
        places = [(k + 0.5) * width for k in some]
        accuracy, confidence = ([bins[key][k] for k in some] for key in ("accuracy", "confidence"))
        less = [min(pair) for pair in zip(accuracy, confidence)]
        plot.bar(places, less, width * 0.94, color=BLUE, label="right")
        for sign, colour, said in ((1, LIGHT_RED, "sure, but not right"), (-1, LIGHT_BLUE, "right, but not sure")):
            gaps = [max(0.0, sign * (c - a)) for a, c in zip(accuracy, confidence)]
            plot.bar(places, gaps, width * 0.94, less, color=colour, label=said)
        plot.plot([0, 1], [0, 1], color="#333333", linestyle="--", linewidth=0.9)
        plot.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence")
        scaled = f" at T = {one['temperature']['mean']:.2f}" if when == "after" else ""
        plot.set_title(f"{name}{scaled}\nECE {ece:.1%}")
        for axis in (plot.xaxis, plot.yaxis):
            axis.set_major_formatter(_percent)
            axis.set_major_locator(MaxNLocator(2))
        if i == 0:
            plot.set_ylabel("share that is right")
    figure.legend(*plot.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _correlation(correlation: dict, names: list[str]) -> Figure:
    """A row a teacher: the student alone, where there is one, and the student."""
    panels = [
        [(teacher, name, np.array(of[name])) for name in sorted(of, reverse=True)]  # the student alone first
        for teacher, of in correlation.items()
    ]
    rows, columns = len(panels), max(map(len, panels))
    figure = Figure(figsize=(8 if columns > 1 else 4.8, 0.3 + 3.9 * rows), layout="constrained")
    plots = figure.subplots(rows, columns, squeeze=False)
    most = max(values.max() for row in panels for _, _, values in row)
    for row, of in zip(plots, panels):
        for plot, (teacher, name, values) in zip(row, of):
            image = plot.imshow(values, cmap="magma_r", vmin=0, vmax=most or 1.0)
            _class_axes(plot, names)
            plot.set_title(f"{teacher} and {name}: {values.mean():.3f} on average")
    figure.colorbar(image, ax=plots, shrink=0.7, label="|difference of the correlations|")
    return figure


def _stages(stages: dict) -> Figure:
    """A row a teacher: the student alone, where there is one, and the student. Deep stages are above, to the right."""
    panels = [
        [(teacher, name, np.array(of[name], dtype=float)) for name in sorted(of, reverse=True)]
        for teacher, of in stages["cka"].items()
        if of
    ]
    rows, columns = len(panels), max(map(len, panels))
    figure = Figure(figsize=(8 if columns > 1 else 4.8, 0.3 + 3.7 * rows), layout="constrained")
    plots = figure.subplots(rows, columns, squeeze=False)
    for row, of in zip(plots, panels):
        for plot, (teacher, name, values) in zip(row, of):
            image = plot.imshow(values, cmap="Blues", vmin=0, vmax=1, origin="lower")
            if max(values.shape) <= WRITTEN:
                for (i, j), value in np.ndenumerate(values):
                    colour = "white" if value > 0.55 else "black"
                    plot.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
            across, up = ([_end(layer) for layer in stages["layers"][one]] for one in (name, teacher))
            _named_axes(plot, across, up)
            plot.set(xlabel=name, ylabel=teacher)
    figure.colorbar(image, ax=plots, shrink=0.7, label="CKA")
    return figure


def _map(embeddings: dict, names: list[str]) -> Figure:
    """A panel a network, a colour a class."""
    places, labels = embeddings["places"], np.array(embeddings["labels"])
    columns = 2 if len(places) == 4 else min(3, len(places))
    rows = ceil(len(places) / columns)
    figure = Figure(figsize=(8 if columns > 1 else 4.8, 0.6 + (8.4 / max(columns, 2)) * rows), layout="constrained")
    for i, (name, of) in enumerate(places.items(), 1):
        plot = figure.add_subplot(rows, columns, i)
        of = np.array(of)
        for colour, label in enumerate(np.unique(labels)):
            x, y = of[labels == label].T
            plot.scatter(x, y, s=9, color=matplotlib.colormaps["tab10"](colour), linewidth=0, label=names[label])
        plot.set(title=name, xticks=[], yticks=[], box_aspect=1)
        plot.spines[:].set(visible=True, color="#d5d8de")
    handles, said = plot.get_legend_handles_labels()
    across = 5 if max(map(len, said)) <= 10 else 3
    figure.legend(handles, said, loc="outside lower center", ncols=across, frameon=False, markerscale=2)
    return figure


def _softened(rows: list[dict], pictures: Tensor, names: list[str], temperatures: list[float]) -> Figure:
    figure = Figure(figsize=(8, 0.4 + 2.1 * len(rows)), layout="constrained")
    plots = figure.subplots(
        len(rows), 1 + len(temperatures), squeeze=False, width_ratios=[0.8, *[1] * len(temperatures)]
    )
    # Each temperature has a scale of its own, or nothing would be seen of many classes at a high one.
    said = np.array([list(row["probabilities"].values()) for row in rows])
    most = said.max(axis=(0, 1, 3))
    for line, row, picture in zip(plots, rows, pictures):
        picture = picture[:3] if len(picture) >= 3 else picture[:1]
        line[0].imshow(picture.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
        line[0].set_title(names[row["label"]])
        line[0].axis("off")
        likely = np.argsort(row["probabilities"]["teacher"][0])[::-1][:LIKELY]
        chosen = sorted(likely) if len(names) <= LIKELY else likely
        for i, (plot, temperature) in enumerate(zip(line[1:], temperatures)):
            for shift, who, colour in ((-0.2, "teacher", "#333333"), (0.2, "student", BLUE)):
                values = [row["probabilities"][who][i][k] for k in chosen]
                plot.barh(np.arange(len(chosen)) + shift, values, 0.4, color=colour, label=who)
            plot.set_yticks(range(len(chosen)), [names[k] for k in chosen] if i == 0 else [], fontsize=7.5)
            plot.invert_yaxis()
            plot.set_xlim(0, most[i])
            plot.xaxis.set_major_locator(MaxNLocator(2, prune="upper"))
            plot.xaxis.set_major_formatter(_percent)
            plot.tick_params(length=0)
            if row is rows[0]:
                plot.set_title(f"T = {temperature:g}")
    figure.legend(*plot.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
