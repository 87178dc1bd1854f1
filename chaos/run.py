"""Injected faults, each of which must end as the unbroken run does, or in the error that is promised.

python chaos/run.py --faults 200 --seed 0 [--kinds WORD,WORD] [--out FILE]
python chaos/run.py --seed 0 --only "plugin raises:3"      # one of them again, its folder kept
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that this file can be run as it is

from chaos import kinds, kinds_ray, kinds_s3
from chaos.lab import Lab

HERE = kinds.KINDS | kinds_s3.KINDS
KINDS = HERE | kinds_ray.KINDS


def plan(faults: int, words: list[str], of: dict) -> list[tuple[str, int]]:
    """(kind, its number) of so many faults, the kinds in turn by their shares; those with one of the words."""
    chosen = {name: share for name, (_, share) in of.items() if any(word in name for word in words)}
    done, found = dict.fromkeys(chosen, 0), []
    for _ in range(faults):
        name = min(chosen, key=lambda name: (done[name] + 1) / chosen[name])
        found.append((name, done[name]))
        done[name] += 1
    return found


def one(name: str, number: int, seed: int, folder: Path, truth: Lab) -> dict:
    began, row = time.monotonic(), {"kind": name, "number": number}
    lab = Lab(folder, truth)
    try:
        row["what"] = KINDS[name][0](lab, Random(f"{seed} {name} {number}"))
        lab.clean()
        row["ok"] = True
    except kinds.Skipped as error:
        row |= {"ok": None, "what": f"skipped: {error}"}
    except Exception as error:
        row |= {"ok": False, "what": f"{type(error).__name__}: {error}"}
    finally:
        lab.close()
    return {**row, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="Only kinds with one of these words in their names.")
    parser.add_argument("--no-ray", action="store_true", help="Only kinds of one process: seconds a fault.")
    parser.add_argument("--only", help='One fault again: "KIND:NUMBER". Its folder is kept.')
    parser.add_argument("--jobs", type=int, default=2, help="Faults at a time.")
    parser.add_argument("--minutes", type=float, default=1e9, help="Begin no fault after so many.")
    parser.add_argument("--out", type=Path, help="Write the results here as JSON.")
    given = parser.parse_args()
    todo = plan(given.faults, given.kinds.split(","), HERE if given.no_ray else KINDS)
    if given.only:
        name, _, number = given.only.rpartition(":")
        todo = [(name, int(number))]
    root = Path(tempfile.mkdtemp(prefix="kdray-chaos-"))
    rows = run(todo, given.seed, root, given.jobs, given.minutes * 60)
    table(rows)
    if given.only:
        print(f"folder: {root}")
    else:
        shutil.rmtree(root)
    if given.out:
        about = {"seed": given.seed, "date": time.strftime("%F"), "python": platform.python_version()}
        given.out.write_text(json.dumps({**about, "cpus": os.cpu_count(), "faults": rows}, indent=1) + "\n")
    return int(any(row["ok"] is False for row in rows))


def run(todo: list[tuple[str, int]], seed: int, root: Path, jobs: int, seconds: float) -> list[dict]:
    """The outcome of each fault, as they end."""
    _load_modules()
    began, rows = time.monotonic(), []
    truth = Lab.first(root / "truth", any(name in kinds_ray.KINDS for name, _ in todo))
    print(f"unbroken runs: {time.monotonic() - began:.0f} s", flush=True)
    tasks = [(name, number, seed, root / str(i), truth, began + seconds) for i, (name, number) in enumerate(todo)]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for row in filter(None, pool.imap_unordered(_one, tasks)):
            rows.append(row)
            state = {True: "ok", None: "--", False: "FAILED"}[row["ok"]]
            print(f"{len(rows):4} {state:6} {row['seconds']:6.1f} s  {row['kind']}: {row['what']}", flush=True)
            if row["ok"] is False:
                print(
                    f'     again: python chaos/run.py --seed {seed} --only "{row["kind"]}:{row["number"]}"', flush=True
                )
    return rows


def _one(task: tuple) -> dict | None:
    *fault, until = task
    if time.monotonic() > until:
        return None
    row = one(*fault)
    if row["ok"] is not False:
        shutil.rmtree(fault[3], ignore_errors=True)
    return row


def table(rows: list[dict]) -> None:
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row)
    print(f"\n{'kind':40} {'faults':>6} {'ok':>4} {'failed':>6} {'seconds':>8}")
    for name in filter(by_kind.get, KINDS):
        of = by_kind[name]
        tried = [row for row in of if row["ok"] is not None]
        good = sum(row["ok"] for row in tried)
        print(f"{name:40} {len(tried):6} {good:4} {len(tried) - good:6} {sum(row['seconds'] for row in of):8.0f}")
    tried = [row for row in rows if row["ok"] is not None]
    print(f"{'all':40} {len(tried):6} {sum(r['ok'] for r in tried):4} {sum(not r['ok'] for r in tried):6}")


def _load_modules() -> None:
    """What the commands need, once for all forks; torch with one thread, since threads do not survive a fork."""
    import sklearn.datasets  # noqa: F401
    import torch

    import kdray.cli.main
    import kdray.engine.train
    import kdray.launch.experiment
    import kdray.launch.precompute  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
