"""What a dry run of a large job costs and finds: `python -m benchmarks.dry_run [NAME ...]`.

Plans each job (or completes the layout that is named for it), runs one rank of each kind, and prints a Markdown table.
With ``--rank N`` only that rank. Exits with 1 where a collective differs from its prediction.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

from costmodels.units import format_bytes
from hardware_profiles.load import load_cluster
from planner.capture.sources import capture_model
from planner.dry_run_result import DryRun, relative
from planner.execution import TORCH_EAGER
from planner.fixed_plan import fixed_plan
from planner.job import Job
from planner.plan import Candidate, Plan, PlanInputs
from planner.planning import make_plan
from planner.report.table import layout_words
from planner.runtime.dry_run import dry_run
from planner.solvers.setting import Setting


@dataclass(frozen=True)
class Large:
    """A job of the table."""

    model: str
    hardware: str
    global_batch: int
    seq_len: int | None = None
    candidate: Candidate | None = None
    """Where it is not searched."""


JOBS = {
    "8b": Large("llama3-8b", "h100-sxm:8x8", 512),
    "70b": Large("llama3-70b", "h100-sxm:64x8", 4096),
    "405b": Large("llama3-405b", "h100-sxm:2048x8", 2048),
    "mixtral": Large(
        "mixtral-8x7b", "h100-sxm:16x8", 512, 4096,
        Candidate(
            pp=4, dp_replicate=1, dp_shard=16, tp=2, ep=8, sequence_parallel=True, zero_stage=1, microbatch_size=1,
            num_microbatches=32, recompute="none",
        ),
    ),
}  # fmt: skip


def planned(job: Large) -> Plan:
    """The plan of a job."""
    c = job.candidate
    if c is None:
        return make_plan(job.model, hardware=job.hardware, global_batch=job.global_batch).plan
    graph, seq_len, _ = capture_model(job.model, seq_len=job.seq_len, compute_dtype="bfloat16")
    what = Job(global_batch=job.global_batch, seq_len=seq_len)
    setting = Setting(graph, load_cluster(job.hardware), what, TORCH_EAGER)
    inputs = PlanInputs(model=job.model, hardware=job.hardware, num_devices=c.num_devices, job=what)
    return fixed_plan(setting, c, inputs)


def row(job: Large, plan: Plan, found: DryRun, wall_s: float) -> str:
    """One line of the table."""
    ranks = found.ranks
    peaks = [relative(rank.peak_bytes, rank.predicted_peak_bytes) for rank in ranks]
    collectives = max(c.difference for rank in ranks for c in rank.collectives)
    cells = (
        f"{job.model} on {found.world_size:,}",
        layout_words(plan.candidate),
        plan.candidate.recompute,
        f"{len(ranks)}",
        f"{found.run_microbatches} of {found.num_microbatches}",
        f"{sum(c.count for c in ranks[0].collectives):,}",
        "exact" if collectives == 0 else f"{collectives:.2%}",
        format_bytes(max(rank.peak_bytes for rank in ranks)),
        f"{max(peaks):.1%}",
        f"{sum(rank.cpu_s for rank in ranks) / len(ranks):.0f}",
        format_bytes(max(rank.host_bytes for rank in ranks)),
        f"{wall_s:.0f}",
    )
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| job | layout | recompute | ranks run | microbatches run | collectives of a rank | against prediction | peak "
    "| peak against prediction | CPU s per rank | host memory | wall s |\n|---" + "|---" * 11 + "|"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*JOBS, []], help="which jobs; default all")
    parser.add_argument("--rank", type=int, help="the only rank to run")
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    differs = False
    for name in arguments.names or JOBS:
        job = JOBS[name]
        plan = planned(job)
        began = time.perf_counter()
        found = dry_run(plan, rank=arguments.rank)
        print(row(job, plan, found, time.perf_counter() - began), flush=True)
        for rank in found.ranks:
            for c in rank.collectives:
                if c.difference:
                    differs = True
                    print(f"rank {rank.rank}: {c}", file=sys.stderr)
    sys.exit(differs)


if __name__ == "__main__":
    main()
