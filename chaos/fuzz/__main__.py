"""Fuzz every reader: python -m chaos.fuzz [--examples 12000] [--only WORD] [--out FILE]

Prints a table of what became of the inputs. A reader that does what it must not ends with exit 1, after all have been
tried; the smallest input that showed it is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from math import ceil
from pathlib import Path

from .judge import fuzz
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=12_000, help="Inputs in all, shared out to the kinds.")
    parser.add_argument("--only", default="", help="Only kinds with this word in their name.")
    parser.add_argument("--out", type=Path, help="Write the table here as JSON.")
    given = parser.parse_args()
    out = given.out and given.out.absolute()
    targets = [target for target in TARGETS if given.only in target.name]
    shares, rows, faults = sum(target.share for target in targets), [], 0
    print(f"{'kind':34} {'inputs':>8} {'accepted':>9} {'refused':>8} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for target in targets:
            seen: Counter[bool] = Counter()
            began = time.monotonic()
            try:
                fuzz(
                    target,
                    ceil(given.examples * target.share / shares),
                    Path(folder),
                    lambda accepted, s=seen: s.update([accepted]),
                )
                fault = ""
            except AssertionError as error:
                fault, faults = "\n".join([str(error), *getattr(error, "__notes__", [])]), faults + 1
            row = {"kind": target.name, "inputs": seen.total(), "accepted": seen[True], "refused": seen[False]}
            rows.append({**row, "seconds": round(time.monotonic() - began, 1), "fault": fault})
            print("{kind:34} {inputs:8} {accepted:9} {refused:8} {seconds:8}".format(**rows[-1]), flush=True)
            if fault:
                print(f"    FAULT {fault[:3000]}", flush=True)
        os.chdir("/")
    if out:
        out.write_text(
            json.dumps({"python": platform.python_version(), "date": time.strftime("%F"), "rows": rows}, indent=1)
            + "\n"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
