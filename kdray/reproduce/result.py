"""What a table came to: our accuracies beside the published ones."""

from __future__ import annotations

from statistics import mean, stdev

from .table import Table


def summarise(table: Table, rows: list[tuple[str, str, int, dict | None, str | None]], teachers: dict) -> list[dict]:
    """rows: pair, method, seed, the run's summary where it is finished, and the error where it failed. teachers: top-1
    accuracies by network, where they are trained. Returns an entry for each teacher of a pair and each pair and method,
    accuracies in per cent; `difference` is ours, at the epoch that was published, less the published one."""
    found: dict[tuple[str, str], dict] = {}
    for pair, method, seed, summary, error in rows:
        if (pair, "teacher") not in found:
            found[pair, "teacher"] = _entry(table, pair, "teacher", table.pairs[pair].published)
            if (top1 := teachers.get(table.pairs[pair].teacher)) is not None:
                found[pair, "teacher"]["last"].append(100 * top1)
        entry = found.setdefault((pair, method), _entry(table, pair, method, table.published(pair, method)))
        entry["runs"] += 1
        if summary:
            entry["last"].append(100 * summary["last"]["top1"])
            entry["best"].append(100 * summary["best"]["test_top1"])
        if error:
            entry["failed"][seed] = error
    for entry in found.values():
        ours = entry[table.epoch] if entry["method"] != "teacher" else entry["last"]
        if ours and entry["published"] is not None:
            entry["difference"] = mean(ours) - entry["published"]
    return list(found.values())


def _entry(table: Table, pair: str, method: str, published: float | None) -> dict:
    return {
        "pair": pair,
        "method": method,
        "published": published,
        "runs": 0,
        "last": [],
        "best": [],
        "difference": None,
        "failed": {},
    }


def markdown(title: str, table: Table, overrides: tuple[str, ...], entries: list[dict]) -> str:
    """A table of them, and below it what failed."""
    lines = [
        f"# {title}",
        "",
        f"{table.title}. Published: {table.source}; {table.epoch} epoch. Accuracy on the test set in per cent, mean ± "
        "deviation over seeds; the best epoch is chosen on the test set itself.",
        *(["", f"Other than published: `{' '.join(overrides)}`."] if overrides else []),
        "",
        f"| pair | method | runs | published | {table.epoch} epoch − published | last epoch | best epoch |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in entries:
        runs = f"{len(entry['last'])}/{entry['runs']}" if entry["runs"] else ""
        published = f"{entry['published']:.2f}" if entry["published"] is not None else ""
        difference = f"{entry['difference']:+.2f}" if entry["difference"] is not None else ""
        shown = " | ".join([runs, published, difference, _spread(entry["last"]), _spread(entry["best"])])
        lines.append(f"| {entry['pair']} | {entry['method']} | {shown} |")
    failed = [(e["pair"], e["method"], seed, why) for e in entries for seed, why in e["failed"].items()]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {pair}, {method}, seed {seed}: {why.splitlines()[0]}" for pair, method, seed, why in failed]
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
