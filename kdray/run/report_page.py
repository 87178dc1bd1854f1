"""The page of a report: one file, its pictures inside, which needs no network and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from .wording import count, large, number, share

MISTAKES = 8
"""Pairs of classes that are listed."""
STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #5d6673; --line: #dfe3e8; --paper: #ffffff; --tint: #f5f7f9;
  --mark: #3b6fb6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde2e8; --soft: #98a2ae; --line: #353c46; --paper: #16191e; --tint: #1f242b; --mark: #82aee6; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .6rem; overflow-wrap: anywhere; }
p, figcaption { max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
nav { margin: 1.2rem 0; font-size: .92rem; }
nav a { color: var(--mark); text-decoration: none; margin-right: 1.1rem; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem .4rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, th.left, td.left { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; color: var(--soft); white-space: normal; vertical-align: bottom; }
figure { margin: 1.2rem 0 1.8rem; }
figure img { display: block; max-width: 100%; height: auto; padding: .5rem; background: #ffffff; border-radius: 6px;
  border: 1px solid var(--line); }
figcaption { margin-top: .5rem; }
.note { background: var(--tint); border-left: 3px solid var(--mark); padding: .7rem 1rem; margin: 1.2rem 0; }
.note ul { margin: .3rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
"""


def page(numbers: dict, folder: Path) -> str:
    """The whole text. numbers: those of report.json; folder: where the pictures are that they name."""
    methods, pictures = numbers["methods"], numbers["pictures"]

    def of_each(section) -> str:
        """A part of a section for each method that has something to say there."""
        parts = []
        for label, method in methods.items():
            images = {what: folder / file for what, file in pictures["methods"][label].items()}
            if part := section(method, images, numbers):
                parts.append(f"<h3>{escape(label)}</h3>\n{part}" if len(methods) > 1 else part)
        return "\n".join(parts)

    sections = {
        "Results": _results(numbers),
        "Learning curves": _curves(numbers, folder),
        "Classes": of_each(_classes),
        "Calibration": of_each(_calibration),
        "Agreement with the teacher": of_each(_agreement),
        "Correlations between classes": of_each(_correlation),
        "Stages": of_each(_stages),
        "Embeddings": of_each(_embeddings),
        "Softened outputs": of_each(_softened),
    }
    there = {title: (title.split()[0].lower(), text) for title, text in sections.items() if text}
    title = ", ".join(methods)
    runs = sum(len(method["runs"]) for method in methods.values())
    made = f"kdray {numbers['kdray']}, {numbers['made']}; {runs} run{'s' if runs > 1 else ''}"
    links = "".join(f'<a href="#{name}">{escape(title)}</a> ' for title, (name, _) in there.items())
    body = "\n".join(
        f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{text}\n</section>' for title, (name, text) in there.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · kdray report</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="soft">{escape(made)}</p>
<nav>{links}</nav>
{_left_out(numbers["left_out"])}
{body}
</body>
</html>
"""


# -- sections ----------------------------------------------------------------------------------------------------------


def _left_out(lines: list[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="note" id="left-out">Left out of this report:<ul>{items}</ul></div>'


def _results(numbers: dict) -> str:
    head = ["", "network", "seeds", "last epoch", "best epoch", "parameters", "MACs", "pictures/s", "size"]
    rows = [
        [
            row["what"],
            row["model"],
            str(len(row["runs"])) if row["role"] != "teacher" else "",
            share(row["last"]),
            share(row["best"]),
            count(row["parameters"]),
            large(row["macs"]),
            f"{row['pictures_per_second']['mean']:,.0f}" if row["pictures_per_second"] else "–",
            f"{large(row['bytes'])}B" if row["bytes"] is not None else "–",
        ]
        for row in numbers["table"]
    ]
    flatters = "the test set itself, which flatters it: the last epoch is the number to compare"
    best_by = flatters if any(row["best_by"] == "test" for row in numbers["table"]) else "the validation split"
    seeds = any(len(row["runs"]) > 1 for row in numbers["table"])
    said = (
        f"Accuracy on the test set{', mean ± standard deviation over seeds' if seeds else ''}. The best epoch was "
        f"chosen on {best_by}. All that follows is of the last epoch. MACs: multiply-accumulates of convolutions and "
        "matrix products for one picture. Pictures/s: in training, the median epoch. Size: of the file of weights."
    )
    lines = [f"{row['what']}: {', '.join(row['runs'])}" for row in numbers["table"] if row["runs"]]
    runs = f'\n<p class="soft">Runs: {escape("; ".join(lines))}.</p>'
    return f'{_table(head, rows, left=2)}\n<p class="soft">{said}</p>{runs}'


def _curves(numbers: dict, folder: Path) -> str:
    band = any(any(line["test"]["deviation"]) for line in numbers["curves"])
    of = " Lines are means over seeds, bands one standard deviation to either side." if band else ""
    files = numbers["pictures"]
    return _figure(
        folder / files["accuracy"],
        "Accuracy by epoch",
        f"Accuracy by epoch, on the test set and, dotted, on the validation split where there is one.{of}",
    ) + _figure(
        folder / files["terms"],
        "Loss and its terms by epoch",
        f"Training loss and its terms, unweighted, by epoch.{of}",
    )


def _classes(method: dict, images: dict[str, Path], numbers: dict) -> str:
    if "confusion" not in images:
        return ""
    seeds = ", all seeds together" if len(method["runs"]) > 1 else ""
    found, against = "", method["per_class"]["against"]
    if against:
        means = "; means over the seeds, with their deviation" if len(method["runs"]) > 1 else ""
        said = f"Test accuracy of each class: the student's less that of the {against}{means}."
        if len(method["classes"]) > 40:
            said += " Of many classes, those at both ends; report.json holds all."
        found = _figure(images["classes"], "Accuracy of classes, compared", said)
    said = f"What the student took pictures of each class for: shares of a row{seeds}. The scale favours small shares."
    return found + _figure(images["confusion"], "Confusion matrix", said) + _mistakes(method)


def _mistakes(method: dict) -> str:
    """The pairs of classes that are confused most often."""
    names, counts = method["classes"], method["confusion"]
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    rows = [
        [names[i], names[j], f"{n:,}", f"{100 * n / sum(counts[i]):.1f} %"]
        for n, i, j in sorted(pairs, key=lambda pair: -pair[0])[:MISTAKES]
    ]
    return _table(["class", "taken for", "pictures", "of the class"], rows, left=2) if rows else ""


def _calibration(method: dict, images: dict[str, Path], numbers: dict) -> str:
    if "calibration" not in images:
        return ""
    rows = [
        [
            name,
            share(one["before"]["ece"]),
            share(one["after"]["ece"]),
            number(one["before"]["nll"], 3),
            number(one["after"]["nll"], 3),
            number(one["temperature"]),
            one["fitted_on"],
            f"{one['pictures']:,}",
        ]
        for name, one in method["calibration"].items()
    ]
    head = ["", "ECE", "ECE, scaled", "NLL", "NLL, scaled", "temperature", "fitted on", "pictures"]
    said = (
        f"Expected calibration error (ECE, {numbers['bins']} bins, Guo et al. 2017): how far confidence is from the "
        "share that is right. NLL: negative log-likelihood, the mean cross-entropy in nats. “Scaled”: logits divided "
        "by the temperature of the smallest cross-entropy on other pictures than those that the errors are of. Where "
        "it was fitted on half of the test set, all errors are of the other half."
    )
    return f'{_table(head, rows)}\n<p class="soft">{escape(said)}</p>' + _figure(
        images["calibration"],
        "Reliability diagrams",
        "Accuracy by confidence: on the dashed line a network is as often right as it says.",
    )


def _agreement(method: dict, images: dict[str, Path], numbers: dict) -> str:
    if not method.get("agreement"):
        return ""
    rows = [
        [teacher, name, share(one["top1"]), number(one["kl"], 3)]
        for teacher, of in method["agreement"].items()
        for name, one in of.items()
    ]
    said = (
        "Top-1 agreement: the share of test pictures that both take for the same class. KL: KL(teacher ‖ student), the "
        "mean over test pictures, in nats, at temperature 1."
    )
    head = ["", "with", "top-1 agreement", "KL"]
    return f'{_table(head, rows, left=2)}\n<p class="soft">{escape(said)}</p>'


def _correlation(method: dict, images: dict[str, Path], numbers: dict) -> str:
    return _figure_of(
        images,
        "correlation",
        "Differences of class correlations",
        "How differently teacher and student relate classes: the absolute difference of the correlation matrices of "
        "their logits over the test set, as in figure 2 of Tian et al. (2020). Lighter is closer to the teacher.",
    )


def _stages(method: dict, images: dict[str, Path], numbers: dict) -> str:
    seeds = ", the mean over the seeds" if len(method["runs"]) > 1 else ""
    return _figure_of(
        images,
        "stages",
        "Similarity of stages",
        "How alike a stage of the teacher and one of the student arrange the same test pictures: linear CKA (Kornblith "
        f"et al., 2019) with the unbiased HSIC (Song et al., 2012){seeds}, of up to {numbers['compared']} pictures. "
        "1: the same up to rotation and scale. 0: as unrelated ones would. Stages are named after their layers, in "
        f"order; maps are averaged to at most {numbers['side']}×{numbers['side']} places.",
    )


def _embeddings(method: dict, images: dict[str, Path], numbers: dict) -> str:
    one_seed = f" Of seed {method['seeds'][-1]}." if len(method["runs"]) > 1 else ""
    some = f" {len(set(method['map']['labels']))} of {len(method['classes'])} classes." if "map" in images else ""
    return _figure_of(
        images,
        "map",
        "Maps of embeddings",
        "Where the classifier's input lies for test pictures, in two dimensions by t-SNE (van der Maaten and Hinton, "
        f"2008): who is near whom means something, distances between groups, their sizes and the axes do not.{some}"
        f"{one_seed}",
    )


def _softened(method: dict, images: dict[str, Path], numbers: dict) -> str:
    return _figure_of(
        images,
        "softened",
        "Softened outputs of single pictures",
        "What the teacher knows beside the answer: probabilities at several temperatures, for the first test pictures "
        "and for those of which teacher and student think most differently. Each picture has its class above it, "
        "each temperature its own scale.",
    )


# -- pieces ------------------------------------------------------------------------------------------------------------


def _table(head: list[str], rows: Iterable[list[str]], left: int = 1) -> str:
    """left: how many of the first columns are text."""

    def cells(tag: str, values: list[str]) -> str:
        return "".join(
            f"<{tag}{' class=left' if i < left else ''}>{escape(value)}</{tag}>" for i, value in enumerate(values)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{cells("th", head)}</tr></thead>\n<tbody>{body}</tbody>\n</table></div>'
    )


def _figure_of(images: dict[str, Path], kind: str, alt: str, caption: str) -> str:
    """Nothing where that picture was left out."""
    return _figure(images[kind], alt, caption) if kind in images else ""


def _figure(file: Path, alt: str, caption: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )
