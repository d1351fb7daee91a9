"""How well step times of real runs are predicted: `python -m benchmarks.runtime_gloo [DIR]`.

Two gloo processes on this machine. First ``hardware measure --quick`` writes a profile of it, then small Llama-shaped
models train under 8 plans, priced with that profile. What no profile says is the host's time per ATen call: it comes
from one more model, so narrow that it computes next to nothing, on each process by itself. Prints a Markdown table of
predicted and measured step times with the median error; plans, profile and table stay in DIR.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from costmodels.units import format_seconds, microseconds
from planner.execution import TORCH_EAGER
from planner.plan import Plan, known

PROCESSES = 2
LIMIT = 0.15
STEPS, LEAST_S = 8, 6.0
"""Steps of a plan: at least so many, and for so long."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
}
"""A device is one thread, and glibc keeps what it is given back: page faults otherwise double the time of memory-bound
kernels by chance."""


@dataclass(frozen=True)
class Configuration:
    """One plan."""

    name: str
    width: int
    degrees: dict[str, Any] = field(default_factory=dict)
    seq_len: int = 512
    microbatch_size: int = 1
    num_microbatches: int = 2


CONFIGURATIONS = (
    Configuration("DDP", 256, {"dp_replicate": 2, "zero_stage": 0}),
    Configuration("FSDP, ZeRO-3", 256, {"dp_shard": 2, "zero_stage": 3}),
    Configuration("FSDP, ZeRO-1", 384, {"dp_shard": 2, "zero_stage": 1}),
    Configuration("FSDP, ZeRO-3, all recomputed", 512, {"dp_shard": 2, "zero_stage": 3, "recompute": "full"}),
    Configuration("TP", 512, {"tp": 2}, num_microbatches=1),
    Configuration("TP and SP", 512, {"tp": 2, "sequence_parallel": True}, microbatch_size=2, num_microbatches=1),
    Configuration("PP, 1F1B", 384, {"pp": 2}, num_microbatches=4),
    Configuration("CP, keys gathered", 256, {"cp": 2, "zero_stage": 3}, microbatch_size=2),
)
NARROW = Configuration("one process, narrow", 32, seq_len=16, num_microbatches=1)
"""The same calls as the others', next to no work."""


def _llama(width: int) -> Any:
    from planner import models

    config = replace(
        models.preset("llama3-8b").config, dim=width, num_layers=4, num_heads=4, num_kv_heads=2, hidden_dim=3 * width,
        vocab_size=2048,
    )  # fmt: skip
    return models.build_from_config(config)


def width_32() -> Any:
    """A factory, as plans name models."""
    return _llama(32)


def width_256() -> Any:
    """A factory, as plans name models."""
    return _llama(256)


def width_384() -> Any:
    """A factory, as plans name models."""
    return _llama(384)


def width_512() -> Any:
    """A factory, as plans name models."""
    return _llama(512)


def plan_of(configuration: Configuration, hardware: str) -> Plan:
    """The configuration's plan, priced."""
    from hardware_profiles.load import load_cluster
    from planner.capture.sources import capture_model
    from planner.fixed_plan import fixed_plan
    from planner.job import Constraints, Job
    from planner.plan import Candidate
    from planner.planning import calibrated, plan_inputs
    from planner.solvers.setting import Setting

    c = configuration
    graph, _, version = capture_model(_source(c), seq_len=c.seq_len, compute_dtype="float32")
    alone = {"pp": 1, "dp_replicate": 1, "dp_shard": 1, "tp": 1, "sequence_parallel": False, "zero_stage": 0}
    size = {"microbatch_size": c.microbatch_size, "num_microbatches": c.num_microbatches, "recompute": "none"}
    candidate = Candidate(**alone | size | c.degrees)
    cluster = load_cluster(hardware, candidate.num_devices)
    samples = c.microbatch_size * c.num_microbatches * candidate.data_parallel
    job = Job(global_batch=samples, seq_len=c.seq_len, precision="fp32", optimizer="adamw")
    setting = Setting(graph, cluster, job, calibrated(graph, cluster))
    return fixed_plan(setting, candidate, plan_inputs(setting, Constraints(), version))


def _source(configuration: Configuration) -> str:
    return f"{__file__}:width_{configuration.width}"


def measured_s(configuration: Configuration, plan: Plan) -> tuple[float, float]:
    """Median step of the slower process, and what it took of this process's processor: less where it waits for the
    other one, or for neighbours on the machine."""
    from planner.runtime.train import Settings, make_trainer

    trainer = make_trainer(plan, Settings(steps=STEPS, model=_source(configuration)))
    seconds: list[float] = []
    busy: list[float] = []
    while len(seconds) <= STEPS or sum(seconds) < LEAST_S:
        begin_s = time.process_time()
        seconds.append(trainer.step(len(seconds) + 1).seconds)
        busy.append(time.process_time() - begin_s)
    return statistics.median(seconds[1:]), statistics.median(busy[1:])


def host_call_s(profile: str) -> float:
    """Host time per ATen call: what the narrow model's step takes beyond its price without the host, over its calls.

    A backward call counts half, as in prices (`planner.solvers.passes`).
    """
    plan = plan_of(NARROW, profile)
    price = known(plan.predicted).breakdown
    host_s = price.seconds("compute.host")
    return (measured_s(NARROW, plan)[0] - price.step_s + host_s) * TORCH_EAGER.host_call_s / host_s


def worker(profile: str) -> None:
    """One of the processes: run everything, and on rank 0 print the table."""
    errors = []
    for c in CONFIGURATIONS:
        plan = plan_of(c, profile)
        expected_s, (found_s, busy_s) = known(plan.predicted).step_s, measured_s(c, plan)
        errors.append(abs(expected_s / found_s - 1))
        if os.environ["RANK"] == "0":
            print(
                f"| {c.name} | {c.width} | {plan.inputs.job.global_batch} x {c.seq_len} | "
                f"{format_seconds(expected_s)} | {format_seconds(found_s)} | {expected_s / found_s - 1:+.0%} | "
                f"{format_seconds(busy_s)} |",
                flush=True,
            )
    middle = statistics.median(errors)
    if os.environ["RANK"] == "0":
        print(f"\nMedian error of {len(errors)}: {middle:.1%} (target {LIMIT:.0%}).")
    sys.exit(middle > LIMIT)


def main() -> int:
    """Measure the machine, then its host, then the plans; the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}", "-m"]
    environment = os.environ | ENVIRONMENT
    profile = folder / "machine.toml"
    measure = [*torchrun, "hardware_profiles.measure", "-o", str(profile), "--quick", "--fresh"]
    if code := subprocess.run(measure, env=environment, check=False).returncode:
        return code
    # As many at once as will run later, for they share caches and clock.
    alone = [sys.executable, "-m", "benchmarks.runtime_gloo", "--host", str(profile)]
    hosts = [subprocess.Popen(alone, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    call_us = statistics.mean(float(host.communicate()[0]) for host in hosts)
    profile.write_text(profile.read_text().replace("[device]\n", f"[device]\ncall_us = {call_us:.3g}\n", 1))
    print(f"Host: {call_us:.3g} us per ATen call.\n", flush=True)
    print("| plan | width | samples x tokens | predicted | measured | error | processor time |")
    print("|---|--:|--:|--:|--:|--:|--:|", flush=True)
    worker_command = [*torchrun, "benchmarks.runtime_gloo", "--worker", str(profile)]
    return subprocess.run(worker_command, env=environment, check=False).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    elif sys.argv[1:2] == ["--host"]:
        print(microseconds(host_call_s(sys.argv[2])))
    else:
        sys.exit(main())
