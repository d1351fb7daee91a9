"""How well a measured profile predicts what was not measured: `python -m benchmarks.measure_gloo [FILE]`.

Four gloo processes on this machine measure it, fit a profile and write it to FILE. Between the measurements of the fit,
so that both see the same machine, 12 collectives run that the fit never sees, three times each: other sizes, other
groups. Prints a Markdown table of what the written profile, read back, predicts for them, with the median error.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import chain
from pathlib import Path

from costmodels.units import GIB, KIB, MIB, MILLI, format_bytes, format_seconds
from hardware_profiles.fit import fit
from hardware_profiles.fitting.links import predict_s
from hardware_profiles.fitting.robust import typical
from hardware_profiles.load import load_cluster
from hardware_profiles.samples import Machine, Measurement, Sample, SampleFile, samples_path
from hardware_profiles.write import profile_text

PROCESSES = 4
TIMES = 3
LIMIT = 0.15

HELD_OUT = (
    Measurement(kind="all_reduce", num_bytes=24 * KIB, size=4),
    Measurement(kind="all_reduce", num_bytes=3 * MIB, size=2, stride=2),
    Measurement(kind="all_reduce", num_bytes=12 * MIB, size=3),
    Measurement(kind="all_gather", num_bytes=24 * KIB, size=2, stride=2),
    Measurement(kind="all_gather", num_bytes=3 * MIB, size=4),
    Measurement(kind="reduce_scatter", num_bytes=768 * KIB, size=2, stride=2),
    Measurement(kind="reduce_scatter", num_bytes=12 * MIB, size=4),
    Measurement(kind="all_to_all", num_bytes=768 * KIB, size=4),
    Measurement(kind="all_to_all", num_bytes=6 * MIB, size=2, stride=2),
    Measurement(kind="broadcast", num_bytes=3 * MIB, size=2, stride=2),
    Measurement(kind="broadcast", num_bytes=12 * MIB, size=4),
    Measurement(kind="send", num_bytes=6 * MIB, size=2, stride=2),
)
"""Every kind, sizes between those of the fit, and two groups that the fit has not: distant pairs, and 3 of 4 ranks."""

KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(64 * GIB)}
"""glibc otherwise gives large buffers back to the kernel after some calls and not after others: page faults then double
the time of collectives that torch stages, by chance."""


def worker(output: Path) -> None:
    """One of the processes: measure, and on rank 0 fit, write and compare."""
    from hardware_profiles.measuring.launcher import place
    from hardware_profiles.measuring.session import Session
    from hardware_profiles.measuring.sizes import QUICK, collective_plan, device_plan
    from hardware_profiles.measuring.stores import meet
    from hardware_profiles.measuring.watchdog import Watchdog

    sizes = replace(
        QUICK,
        passes=((KIB, 16 * KIB, 256 * KIB, 4 * MIB, 16 * MIB), (4 * KIB, 64 * KIB, MIB, 8 * MIB)),
        batch_s=40 * MILLI,
        budget_s=1.5,
        slow_s=1.0,
        total_s=1200.0,
        max_repeats=40,
    )
    here = place(os.environ)
    store = meet(here, 60.0)
    watchdog = Watchdog(
        meet(here, 60.0, second=True), here.rank, here.world_size, time_limit_s=60.0, save=lambda verdict: None
    )
    watchdog.start()
    session = Session(here, store, watchdog)
    machine = session.machine()
    dtypes = session.dtypes()
    links = [
        what
        for what in collective_plan(sizes, machine.num_nodes, machine.devices_per_node, dtypes[0])
        if (what.size, what.stride) != (2, 2)
    ]
    assert not set(HELD_OUT) & set(links)
    # Each of the held out three times, far apart: what passes over the machine in between is not the collective's.
    times = HELD_OUT * TIMES
    step = len(links) // len(times)
    mixed = [*chain.from_iterable((*links[i * step : (i + 1) * step], held) for i, held in enumerate(times))]
    plan = [*device_plan(sizes, dtypes, accelerator=False), *mixed, *links[len(times) * step :]]
    file = SampleFile.open(samples_path(output), machine, fresh=True) if here.rank == 0 else None
    session.run(plan, sizes, (), file.append if file else lambda sample: None)
    session.finish()
    session.close()
    if file:
        report(machine, file.samples, output)


def report(machine: Machine, samples: list[Sample], output: Path) -> None:
    """Fit, write, read back, predict, print; exits with 1 above the limit."""
    fitted = fit(machine, [sample for sample in samples if sample.measurement not in HELD_OUT], name=output.stem)
    output.write_text(profile_text(fitted, machine, command=f"-o {output.name}"), encoding="utf-8")
    cluster = load_cluster(f"{output}:{machine.num_nodes}x{machine.devices_per_node}")
    for error in fitted.errors:
        print(f"- {error}")
    print("\n| collective | bytes | ranks, stride | predicted | measured | error |")
    print("|---|--:|--:|--:|--:|--:|")
    errors = []
    for held in HELD_OUT:
        found = [sample for sample in samples if sample.measurement == held]
        sample = found[0]
        predicted_s, measured_s = predict_s(cluster, sample), statistics.median(typical(s.seconds) for s in found)
        errors.append(abs(predicted_s / measured_s - 1))
        print(
            f"| {sample.kind} | {format_bytes(sample.num_bytes)} | {sample.size}, {sample.stride} | "
            f"{format_seconds(predicted_s)} | {format_seconds(measured_s)} | {predicted_s / measured_s - 1:+.0%} |"
        )
    middle = statistics.median(errors)
    print(f"\nMedian error of {len(errors)}: {middle:.1%} (limit {LIMIT:.0%}).")
    sys.exit(middle > LIMIT)


def main() -> int:
    """Start the processes; the exit code."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "measured-gloo.toml"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command = [*launch, "-m", "benchmarks.measure_gloo", "--worker", str(output)]
    return subprocess.run(command, env=os.environ | KEEP_MEMORY, check=False).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]))
    else:
        sys.exit(main())
