"""`kdray train` beside the peers' training step (peers.py), for all work of the table in README.md.

    python benchmarks/speed.py [--only main|methods] [--quick] [--rounds 3] [--steps 36]

main: CRD, KD and teacher training; methods: RepDistiller's other methods, those with a stage before the main loop
twice. Every figure is of a process of its own, on an otherwise idle machine: in each round the peers' step as it is
shipped, then kdray's runs of the same work, then the peers' step with the memory settings of kdray's workers. kdray's
are whole runs, `kdray train` of the published config in one Ray worker with both cores, on 50,000 random pictures of
100 classes; the pace is that of its steady state, read from the progress.json that it writes, and it is stopped as
`kdray stop` does it. A cached teacher's answers to these steps are computed and stored before (answers.py).
Figures are medians over rounds, ratios are medians of the rounds' own ratios.

Where the processor is no faster in bf16, fp32 takes its place and the table says so. --steps: of kdray that are
measured in each round. --quick: one short round, of which nothing is written. Else each set writes
benchmarks/results/speed-SET.json and speed-SET.md; about 25 minutes for main and 15 for methods, in bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from project import BATCH, ROOT, Pace, Project, RunFailed
from steps import machine
from torch import nn

HERE = Path(__file__).parent
WRN, RESNET = ("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4")
NAMES = {WRN: "WRN-40-2 to WRN-16-2", RESNET: "ResNet-32x4 to ResNet-8x4"}
WARM, SPARE = 10, 24
"""Steps of kdray that warm up, and that are there beyond those that are measured, until the run has stopped."""


@dataclass(frozen=True)
class Peers:
    """A process of peers.py."""

    method: str
    pair: tuple[str | None, str] = RESNET
    stage: bool = False


@dataclass(frozen=True)
class Run:
    """A run of kdray. short: with only as many samples as the steps need, so that a stage ends."""

    config: str
    pair: tuple[str | None, str] = RESNET
    precision: str = "bf16"
    cached: bool = False
    changes: tuple[str, ...] = ()
    short: bool = False


@dataclass(frozen=True)
class Row:
    """asked: the least ratio that is aimed at, where one is."""

    work: str
    asked: float | None
    peers: Peers
    run: Run


def main_rows() -> list[Row]:
    rows = []
    for pair, live in ((WRN, 6), (RESNET, 4.3)):
        work, peers, run = f"CRD {NAMES[pair]}", Peers("crd", pair), Run("crd.yaml", pair)
        rows.append(Row(f"{work}, cached teacher", 9, peers, replace(run, cached=True)))
        if pair == WRN:
            shared = replace(run, config="crd_shared.yaml", cached=True)
            rows.append(Row(f"{work}, cached teacher, shared negatives", 11, peers, shared))
        rows.append(Row(f"{work}, live teacher", live, peers, run))
        rows.append(Row(f"{work}, cached teacher", 6, peers, replace(run, cached=True, precision="fp32")))
    kd, run, work = Peers("kd"), Run("kd.yaml"), f"KD {NAMES[RESNET]}"
    rows.append(Row(f"{work}, cached teacher", 5.5, kd, replace(run, cached=True)))
    rows.append(Row(f"{work}, cached teacher", 3.2, kd, replace(run, cached=True, precision="fp32")))
    rows.append(Row(f"{work}, live teacher", 2.3, kd, run))
    alone = (None, WRN[0])
    return [*rows, Row("teacher training WRN-40-2", 2.4, Peers("ce", alone), Run("teachers/cifar100.yaml", alone))]


def method_rows() -> list[Row]:
    rows = []
    for name in ("hint", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "kdsvd", "ab", "ft", "fsp"):
        run = Run(f"repdistiller/{name}.yaml", short=True)
        if name in ("ab", "ft", "fsp"):
            run = replace(run, changes=(f"losses.{name}.init_epochs=1",))
            rows.append(Row(f"{name}, stage before the main loop", 2, Peers(name, stage=True), run))
        rows.append(Row(name, 2, Peers(name), run))
    return rows


def in_fp32(rows: list[Row]) -> list[Row]:
    """What is aimed at in bf16 is not aimed at then."""
    found = {}
    for row in rows:
        mine, run = row.run.precision == "fp32", replace(row.run, precision="fp32")
        if mine or (row.work, run) not in found:
            found[row.work, run] = replace(row, run=run, asked=row.asked if mine else None)
    return list(found.values())


SETS = {"main": main_rows, "methods": method_rows}


def environment() -> dict[str, str]:
    """Nobody's number of threads is set from outside."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


class Measuring:
    def __init__(self, folder: Path, steps: int):
        """steps: of kdray; the peers' cost more, and make a third of them."""
        self.steps, self.project = steps, Project(folder, (WRN[0], RESNET[0]), environment())
        self.failed: dict[Run, str] = {}

    def peers(self, peers: Peers, tuned: bool) -> float:
        """Seconds a step."""
        teacher, student = peers.pair
        command = [sys.executable, str(HERE / "peers.py"), peers.method, "--student", student]
        command += ["--steps", str(max(3, self.steps // 3)), *(["--stage"] if peers.stage else [])]
        command += ["--teacher", teacher, "--weights", str(self.project.weights(teacher))] if teacher else []
        command += ["--tuned"] if tuned else []
        made = subprocess.run(command, env=environment(), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return statistics.median(json.loads(made.stdout))

    def kdray(self, run: Run) -> Pace | None:
        """None where it failed; why is kept."""
        if run in self.failed:
            return None
        try:
            pace = self.project.pace(run.config, self.changes(run), WARM, self.steps)
            if run.cached and pace.last[2] > WARM + self.steps + SPARE:
                raise RunFailed(f"it came to step {pace.last[2]}, which has no stored answers")
            return pace
        except RunFailed as error:
            self.failed[run] = str(error)
            return None

    def changes(self, run: Run) -> list[str]:
        found = [*self.project.changes(*run.pair), f"engine.precision={run.precision}", *run.changes]
        if run.cached:
            found.append(f"teacher.cache={{path: {self.cache(run)}, fill: true}}")
        if run.short:
            found.append(f"data.samples={(WARM + self.steps + SPARE) * BATCH}")
        return found

    def cache(self, run: Run) -> Path:
        """With the answers that the steps of this run meet."""
        output = "embedding" if "crd" in run.config else "logits"
        where = self.project.folder / f"{run.pair[0]}-{run.precision}-{output}"
        if not where.exists():
            changes = self.changes(replace(run, cached=False))
            command = [sys.executable, str(HERE / "answers.py"), str(ROOT / "configs" / run.config)]
            command += [str(WARM + self.steps + SPARE), *changes, f"teacher.cache={{path: {where}}}"]
            subprocess.run(command, cwd=self.project.folder, env=environment(), check=True)
        return where


def fast_bf16() -> bool:
    """Whether this processor convolves faster in bf16 than in fp32."""
    x = torch.randn(BATCH, 64, 32, 32).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)

    def seconds(enabled: bool) -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            conv(x)
            began = time.perf_counter()
            for _ in range(5):
                conv(x)
            return time.perf_counter() - began

    return seconds(True) < seconds(False)


def measure(rows: list[Row], rounds: int, steps: int) -> tuple[list[dict], list[str]]:
    """A dictionary a row, and what failed."""
    seconds: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        measuring = Measuring(Path(folder), steps)

        def note(key, found: float | None) -> None:
            seconds.setdefault(key, []).append(found)

        for number in range(rounds):
            for peers in dict.fromkeys(row.peers for row in rows):
                mine = [row.run for row in rows if row.peers == peers]
                note((peers, "shipped"), measuring.peers(peers, tuned=False))
                for run in dict.fromkeys(mine):
                    if (run, "") not in seconds or len(
                        seconds[run, ""]
                    ) <= number:  # a stage's run has the main loop too
                        pace = measuring.kdray(run)
                        print(".", end="", flush=True)
                        for stage in ("", "stage") if pace is None else pace.seconds:
                            found = pace and statistics.median(pace.seconds[stage])
                            note((run, "stage" if stage else ""), found)
                note((peers, "tuned"), measuring.peers(peers, tuned=True))
            print(f" round {number + 1} of {rounds}", flush=True)
    return [
        result(row, *(seconds[key] for key in keys))
        for row in rows
        for keys in [((row.peers, "shipped"), (row.peers, "tuned"), (row.run, "stage" if row.peers.stage else ""))]
    ], [f"{run.config} {' '.join(run.changes)}: {why}" for run, why in measuring.failed.items()]


def result(row: Row, shipped: list[float], tuned: list[float], kdray: list[float | None]) -> dict:
    found = {"work": row.work, "precision": row.run.precision, "asked": row.asked}
    found["seconds"] = {"peers": shipped, "peers_tuned": tuned, "kdray": kdray}
    if None in kdray:
        return found
    return found | {
        "ratio": statistics.median(a / b for a, b in zip(shipped, kdray)),
        "ratio_tuned": statistics.median(a / b for a, b in zip(tuned, kdray)),
        "pictures_per_second": {name: BATCH / statistics.median(s) for name, s in found["seconds"].items()},
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| work | precision | ratio, at least | ratio | to the peers with kdray's memory settings | peers | "
        "peers, memory settings | kdray |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [row["work"], row["precision"], f"{row['asked']:g}" if row["asked"] else ""]
        if "ratio" in row:
            rates = row["pictures_per_second"]
            cells += [f"{row['ratio']:.2f}", f"{row['ratio_tuned']:.2f}"]
            cells += [f"{rates[name]:,.0f}" for name in ("peers", "peers_tuned", "kdray")]
        else:
            cells += ["failed", *[""] * 4]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=SETS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=36)
    args = parser.parse_args()
    torch.set_num_threads(2)
    bf16, failed = fast_bf16(), []
    rounds, steps = (1, 12) if args.quick else (args.rounds, args.steps)
    for name in [args.only] if args.only else SETS:
        rows, began = SETS[name](), time.time()
        if not bf16:
            rows = in_fp32(rows)
        light = name == "methods"  # many, and near to each other
        about = {"rounds": min(rounds, 2) if light else rounds, "steps": steps // 2 if light else steps}
        found, failures = measure(rows, **about)
        failed += failures
        print(table(found), flush=True)
        if not args.quick:
            about |= {**machine(), "fast bf16": bf16, "date": time.strftime("%Y-%m-%d")}
            write(name, {**about, "minutes": round((time.time() - began) / 60), "batch": BATCH}, found)
    print(*failed, sep="\n")


def write(name: str, about: dict, rows: list[dict]) -> None:
    file = HERE / "results" / f"speed-{name}.json"
    file.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    said = "\n".join(f"- {what}: {value}" for what, value in about.items())
    text = f"Pictures a second (`python benchmarks/speed.py --only {name}`).\n\n{said}\n\n{table(rows)}\n"
    file.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
