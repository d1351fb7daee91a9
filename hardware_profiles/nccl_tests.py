"""Timings of NVIDIA's nccl-tests (and of rccl-tests) as samples: the JSON that ``-J FILE`` writes.

Format versions 1 to 3: ``args``, ``config`` (``nthreads``, ``ngpus``, ``devices``) and ``results``, one entry per size.
``size`` is the message as `costmodels.communication` counts it: the whole gathered, scattered or exchanged buffer.
Times are microseconds, the mean over the iterations; with per-iteration reports each iteration's. Source: nccl-tests,
src/util.cu and src/common.cu (``writeBenchmarkLinePreamble`` is given the larger of the send and receive buffers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from costmodels.units import MICRO
from hardware_profiles.errors import MeshwrightError
from hardware_profiles.samples import Collective, Machine, Sample

_PROGRAMS: dict[str, Collective] = {
    "all_reduce_perf": "all_reduce",
    "all_gather_perf": "all_gather",
    "reduce_scatter_perf": "reduce_scatter",
    "alltoall_perf": "all_to_all",
    "broadcast_perf": "broadcast",
}


class NcclTestsError(MeshwrightError):
    """A file that is not what nccl-tests write, or of a test that says nothing about the profile."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Samples of one file, and the part of the machine that was used."""

    samples: tuple[Sample, ...]
    num_nodes: int
    devices_per_node: int


def read_nccl_tests(path: Path) -> Imported:
    """The out-of-place timings of one file.

    Raises `NcclTestsError` where the file cannot be read, is of another program than the collectives' tests, or names
    groups of ranks that do not lie evenly.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NcclTestsError(f"{path}: cannot be read as JSON: {error}") from None
    try:
        program = PurePath(table["args"][0]).name
        config, results = table["config"], table["results"]
        per_process = int(config["nthreads"]) * int(config["ngpus"])
        devices = [(int(device["rank"]), int(device["group"]), str(device["hostname"])) for device in config["devices"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NcclTestsError(f"{path}: not the output of nccl-tests -J: {error!r}") from None
    if program not in _PROGRAMS:
        raise NcclTestsError(f"{path}: {program} is not one of {', '.join(_PROGRAMS)}")
    size, stride = _axis(path, devices, per_process)
    hosts = {host for _, _, host in devices}
    total = len(devices) * per_process
    if total % len(hosts):
        raise NcclTestsError(f"{path}: {total} ranks do not fill {len(hosts)} hosts evenly")
    samples = []
    for result in results:
        seconds = _seconds(result)
        if seconds and result.get("size", 0) > 0:
            samples.append(
                Sample(
                    kind=_PROGRAMS[program],
                    num_bytes=int(result["size"]),
                    size=size,
                    stride=stride,
                    seconds=seconds,
                    origin=path.name,
                )
            )
    if not samples:
        raise NcclTestsError(f"{path}: holds no out-of-place timings")
    return Imported(samples=tuple(samples), num_nodes=len(hosts), devices_per_node=total // len(hosts))


def with_nccl_tests(machine: Machine, samples: Sequence[Sample], paths: Sequence[Path]) -> tuple[Machine, list[Sample]]:
    """The machine and its samples together with those of the files.

    A machine of which one device was measured takes the shape of the largest file's; another must have as many devices
    in a node as the files, and as many nodes at least. Raises `NcclTestsError` otherwise.
    """
    imported = {path: read_nccl_tests(path) for path in paths}
    if imported and machine.num_devices == 1:
        nodes = max(part.num_nodes for part in imported.values())
        per_node = max(part.devices_per_node for part in imported.values())
        machine = machine.model_copy(update={"num_nodes": nodes, "devices_per_node": per_node})
    for path, part in imported.items():
        fits = part.devices_per_node == machine.devices_per_node or part.num_nodes == 1
        if not fits or part.num_nodes > machine.num_nodes or part.devices_per_node > machine.devices_per_node:
            raise NcclTestsError(
                f"{path}: ran on {part.num_nodes} x {part.devices_per_node} devices, which are no part of the "
                f"{machine.num_nodes} x {machine.devices_per_node} that were measured"
            )
    return machine, [*samples, *(sample for part in imported.values() for sample in part.samples)]


def _axis(path: Path, devices: list[tuple[int, int, str]], per_process: int) -> tuple[int, int]:
    """(size, stride) of the groups; a process with several devices is listed with its first only."""
    groups: dict[int, list[int]] = {}
    for rank, group, _ in devices:
        groups.setdefault(group, []).extend(range(rank, rank + per_process))
    shapes = set()
    for ranks in groups.values():
        ranks.sort()
        steps = {b - a for a, b in pairwise(ranks)} or {1}
        shapes.add((len(ranks), *sorted(steps)))
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
        raise NcclTestsError(f"{path}: groups of ranks {sorted(groups.values())} are not equally large and spaced")
    return shape[0], shape[1]


def _seconds(result: dict[str, Any]) -> tuple[float, ...]:
    """Of the out-of-place operation: every iteration where they were reported, else the mean; nothing where not run."""
    iterations = result.get("out_of_place_per_iter") or {}
    times = iterations.get("times_us", [])[int(iterations.get("skipped_iterations", 0)) :]
    if not times:
        # With -C 1 the file has "cpu_time" in place of "time", which is not the duration.
        times = [(result.get("out_of_place") or {}).get("time")]
    return tuple(time * MICRO for time in times if isinstance(time, int | float) and time > 0)
