"""CPU time and peak memory of whole planning commands, capture included: `python -m benchmarks.planning`.

Each case is a fresh process (interpreter start and torch import included); the figures are the kernel's own account of
that process. Prints a Markdown table with the limits that the project holds itself to, and exits with 1 when one is
broken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from costmodels.units import GIB, KIB


@dataclass(frozen=True)
class Case:
    """One planning command and its limits."""

    model: str
    hardware: str
    global_batch: int
    limit_cpu_s: float
    limit_memory_bytes: int = 2 * GIB


CASES = (
    Case("llama3-8b", "h100-sxm:8x8", 512, limit_cpu_s=10),
    Case("llama3-70b", "h100-sxm:64x8", 1024, limit_cpu_s=20),
    Case("llama3-405b", "h100-sxm:2048x8", 2048, limit_cpu_s=30),
)


def measure(case: Case) -> tuple[float, int, dict[str, float]]:
    """(CPU seconds, peak resident bytes, wall seconds by phase) of one planning command."""
    command = [
        sys.executable, "-c", "from planner.cli import main; main()", "plan", case.model,
        "--hardware", case.hardware, "--global-batch", str(case.global_batch), "--json",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KIB, json.loads(output)["seconds"]


def main() -> int:
    """Measure all cases and print the table."""
    broken = False
    print("| model | devices | CPU s (limit) | peak GiB (limit) | wall s: capture | search |")
    print("|---|--:|--:|--:|--:|--:|")
    for case in CASES:
        cpu_s, memory_bytes, wall = measure(case)
        broken |= cpu_s > case.limit_cpu_s or memory_bytes > case.limit_memory_bytes
        print(
            f"| {case.model} | {case.hardware} | {cpu_s:.1f} ({case.limit_cpu_s:.0f}) "
            f"| {memory_bytes / GIB:.2f} ({case.limit_memory_bytes / GIB:.0f}) "
            f"| {wall['capture']:.1f} | {wall['search']:.1f} |",
            flush=True,
        )
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
