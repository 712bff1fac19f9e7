"""Break the commands on purpose, run them again, and compare with what nothing disturbed.

``python -m tests.torture --repetitions 5`` writes ``results/torture/faults.csv``, a row for each
fault, and a manifest beside it. Every command runs in a process of its own, forked from one that has
imported all it needs; it is really killed, its disk is really full, its files really change.

resumed: the command, run again, ended with the undisturbed result. refused: it first said what to
do, and ended with that result once that was done. lost: it did neither. wrong: it ended with another
result, or with one that holds something twice.
"""

import argparse
import csv
import json
import os
import random
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from rdl_study.store import machine, project_folder
from tests.torture.faults import FAULTS
from tests.torture.work import Workshop

COLUMNS = ("fault", "tried", "resumed", "refused", "lost", "wrong", "said")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="of every fault")
    parser.add_argument("--seconds", type=float, default=800, help="no repetition begins later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", action="append", help="only those whose name has this in it")
    parser.add_argument("--out", type=Path, default=project_folder() / "results" / "torture")
    given = parser.parse_args()
    started, draw = time.monotonic(), random.Random(given.seed)
    base = Path(tempfile.mkdtemp(prefix="torture-"))
    shop, rows = Workshop(base), []
    wanted = given.fault or [""]
    chosen = {n: f for n, f in FAULTS.items() if any(part in n for part in wanted)}
    for name, fault in chosen.items():
        row = dict.fromkeys(COLUMNS, 0) | {"fault": name, "said": ""}
        for number in range(given.repetitions):
            if number and time.monotonic() - started > given.seconds:
                break
            outcome, said = fault(shop, draw)
            row["tried"] += 1
            row[outcome] += 1
            row["said"] = said or row["said"]
            at = f"{time.monotonic() - started:4.0f} s"
            print(f"{at}  {name}: {outcome}  {said[:120]}", flush=True)
        rows.append(row)
    shop.close()
    write(given, rows, time.monotonic() - started)
    shutil.rmtree(base)
    return any(row["lost"] + row["wrong"] for row in rows)


def write(given, rows, wall_s):
    given.out.mkdir(parents=True, exist_ok=True)
    here = machine()  # before the table itself changes the checkout
    with (given.out / "faults.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS[:-1], extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    manifest = {
        "command": "make torture", "seed": given.seed, "repetitions": given.repetitions,
        "wall_s": round(wall_s), "load": os.getloadavg()[1],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "said": {row["fault"]: row["said"] for row in rows}, **here,
    }  # fmt: skip
    (given.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
