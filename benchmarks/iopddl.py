"""Instances of the 2025 contest on intra-operator parallelism: ``python -m benchmarks.iopddl PATH``.

For a file, solves it and prints cost, bound, gap, seconds (reading included), peak usage and whether the choice is
feasible. For a folder, solves every instance in it, each in a process of its own within the time limit that its
``best_known.json`` names (times ``--factor``), and writes the table to ``docs/intra_op_solver.md``. Cost and peak are
computed here, in whole numbers and from the raw file, with nothing of the solver.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from costmodels.units import KIB, MIB

PAGE = Path(__file__).parent.parent / "docs" / "intra_op_solver.md"
FORBIDDEN = 10**18
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def evaluate(raw: dict[str, Any], choice: tuple[int, ...]) -> tuple[int, int, bool]:
    """(cost, peak usage, feasible) of a choice by the raw file, in whole numbers."""
    nodes, edges = raw["nodes"], raw["edges"]
    entries = [costs[s] for costs, s in zip(nodes["costs"], choice, strict=True)]
    for (i, j), costs in zip(edges["nodes"], edges["costs"], strict=True):
        entries.append(costs[choice[i] * len(nodes["costs"][j]) + choice[j]])
    changes: dict[int, int] = {}
    for (lo, hi), usages, s in zip(nodes["intervals"], nodes["usages"], choice, strict=True):
        if lo < hi:
            changes[lo] = changes.get(lo, 0) + usages[s]
            changes[hi] = changes.get(hi, 0) - usages[s]
    held = peak = 0
    for point in sorted(changes):
        held += changes[point]
        peak = max(peak, held)
    limit = raw.get("usage_limit")
    return sum(entries), peak, max(entries) < FORBIDDEN and (limit is None or peak <= limit)


def run_file(path: Path, time_limit_s: float) -> dict[str, Any]:
    """Solve one instance: what the command prints."""
    started, cpu = time.monotonic(), time.process_time()
    from planner.solvers.intra_op import solve
    from planner.solvers.intra_op.contest import read_contest

    problem = read_contest(path)
    solution = solve(problem, time_limit_s=time_limit_s - (time.monotonic() - started))
    seconds, cpu_s = time.monotonic() - started, time.process_time() - cpu
    raw = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())["problem"]
    cost, peak, feasible = evaluate(raw, solution.choice)
    return {
        "cost": cost,
        "bound": solution.bound,
        "gap": solution.gap,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_s, 1),
        "peak_usage": peak,
        "feasible": feasible,
        "process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB // MIB,
    }


def run_folder(folder: Path, factor: float) -> str:
    """Solve all instances of a folder; the page's table."""
    known = json.loads((folder / "best_known.json").read_text())
    rows = [
        "| instance | cost | bound | gap | best known | contest's best | s | CPU s | limit s | MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in sorted(known.items()):
        limit = row["time_limit_s"] * factor
        command = [sys.executable, "-m", "benchmarks.iopddl", str(folder / f"{name}.json.gz"), "--json"]
        done = subprocess.run([*command, "--time-limit", str(limit)], capture_output=True, text=True, check=False)
        if done.returncode:
            rows.append(f"| {name} | {done.stderr.strip().splitlines()[-1]} | | | | | | | | |")
            continue
        found = json.loads(done.stdout)
        cost = f"{found['cost']:,}" if found["feasible"] else "not feasible"
        rows.append(
            f"| {name} | {cost} | {found['bound']:,.0f} | {found['gap']:.2%} "
            f"| {row['cost']:,} | {row['contest_best']:,} | {found['seconds']:.0f} "
            f"| {found['cpu_seconds']:.0f} | {limit:.0f} | {found['process_mib']} |"
        )
        print(rows[-1], flush=True)
    return "\n".join(rows)


def write_page(table: str, command: str) -> None:
    """Put the table between the page's marks, with date and command."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    said = f"`{command}` on {datetime.date.today().isoformat()}:"
    PAGE.write_text(f"{before}{BEGIN}\n{said}\n\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="an instance, or a folder of instances with best_known.json")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for one instance, reading included")
    parser.add_argument("--factor", type=float, default=1.0, help="of each instance's own time limit, for a folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.path.is_dir():
        table = run_folder(arguments.path, arguments.factor)
        write_page(table, f"python -m benchmarks.iopddl FOLDER --factor {arguments.factor:g}")
        return
    found = run_file(arguments.path, arguments.time_limit)
    if arguments.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:>12}: {value}")


if __name__ == "__main__":
    main()
