"""CPU time and peak memory of planning, phase by phase: `python -m benchmarks.planning`.

Two tables in Markdown: whole ``plan`` commands, capture included, and layouts of every operation over a given mesh.
Each case is a fresh process (interpreter start and torch import included); peak memory, and the CPU time of whole
commands, are the kernel's own account of it. Limits are those that the project holds itself to; exits with 1 when one
is broken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class LayoutCase:
    """Layouts over one mesh, and the limit of CPU seconds after capture."""

    model: str
    mesh: tuple[int, ...]
    batch: int
    seq_len: int
    limit_cpu_s: float
    limited: bool = True
    """Whether memory is: 64 devices do not hold every model."""
    limit_memory_bytes: int = GIB


LAYOUT_CASES = (
    LayoutCase("llama3-8b", (8, 8), 16, 8192, limit_cpu_s=3),
    LayoutCase("llama3-70b", (8, 8), 16, 4096, limit_cpu_s=6),
    LayoutCase("deepseek-v3", (8, 8), 16, 4096, limit_cpu_s=6, limited=False),
    LayoutCase("llama3-8b", (4, 4, 4), 16, 8192, limit_cpu_s=15),
    LayoutCase("llama3-70b", (4, 4, 4), 16, 4096, limit_cpu_s=15),
    LayoutCase("deepseek-v3", (4, 4, 4), 16, 4096, limit_cpu_s=15, limited=False),
)
HARDWARE = "h100-sxm:8x8"
AXES = ("dp", "cp", "tp")


def solve_layouts(case: LayoutCase) -> None:
    """In a process of its own: print CPU seconds by phase and what was found, as JSON."""
    from hardware_profiles.load import load_cluster
    from planner.capture.sources import capture_model
    from planner.execution import TORCH_EAGER
    from planner.job import Constraints, Job
    from planner.solvers.block_layout.chain import solve_chain
    from planner.solvers.block_layout.mesh import LayoutMesh
    from planner.solvers.block_layout.problem import block_problem
    from planner.solvers.setting import Setting

    cluster = load_cluster(HARDWARE)
    graph, seq_len, _ = capture_model(case.model, seq_len=case.seq_len, compute_dtype="bfloat16")
    captured = time.process_time()
    setting = Setting(graph, cluster, Job(global_batch=case.batch, seq_len=seq_len), TORCH_EAGER)
    axes = AXES if len(case.mesh) == len(AXES) else (AXES[0], AXES[-1])
    mesh = LayoutMesh(cluster, axes, case.mesh)
    problems = [block_problem(setting, i, mesh, batch=case.batch) for i in range(len(graph.blocks))]
    built = time.process_time()
    limit = Constraints.memory_fraction * cluster.device.memory_bytes if case.limited else None
    found = solve_chain(problems, setting.block_of, limit)
    done = time.process_time()
    phases = {"capture": captured, "problems": built - captured, "solve": done - built}
    print(json.dumps({**phases, "seconds": found.best.seconds, "gap": found.gap}))


def run(*arguments: str) -> tuple[float, int, dict[str, Any]]:
    """(CPU seconds, peak resident bytes, what it prints as JSON) of a Python process."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} exited with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KIB, json.loads(output)


def measure(case: Case) -> tuple[float, int, dict[str, float]]:
    """(CPU seconds, peak resident bytes, wall seconds by phase) of one planning command."""
    command = ["-c", "from planner.cli import main; main()", "plan", case.model, "--hardware", case.hardware]
    cpu_s, memory_bytes, content = run(*command, "--global-batch", str(case.global_batch), "--json")
    return cpu_s, memory_bytes, content["seconds"]


def main() -> int:
    """Measure all cases and print the tables."""
    if len(sys.argv) > 1:
        solve_layouts(LAYOUT_CASES[int(sys.argv[1])])
        return 0
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
    print("\n| model | mesh | CPU s (limit) | problems | solve | peak GiB (limit) | capture CPU s | gap |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for i, layout_case in enumerate(LAYOUT_CASES):
        _, memory_bytes, phases = run("-m", "benchmarks.planning", str(i))
        cpu_s = phases["problems"] + phases["solve"]
        broken |= cpu_s > layout_case.limit_cpu_s or memory_bytes > layout_case.limit_memory_bytes
        print(
            f"| {layout_case.model} | {' x '.join(map(str, layout_case.mesh))} "
            f"| {cpu_s:.1f} ({layout_case.limit_cpu_s:.0f}) | {phases['problems']:.1f} | {phases['solve']:.1f} "
            f"| {memory_bytes / GIB:.2f} ({layout_case.limit_memory_bytes / GIB:.0f}) "
            f"| {phases['capture']:.1f} | {phases['gap']:.1%} |",
            flush=True,
        )
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
