"""Prices of collectives against published measurements: ``python -m benchmarks.collectives NCCL.csv FACTS.json``.

``NCCL.csv``: columns ``device,op_name,num_gpus,bytes,us`` (one node, 2 to 8 devices; the layout of the
ai-dynamo/aiconfigurator database). ``FACTS.json``: a list of objects with ``hardware``, ``quantity``, ``value`` and
``unit``, of which those named in `PUBLISHED` are used. Prints the tables of docs/collectives.md: error by size band,
then every other published figure.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodels.communication import all_gather_s, all_reduce_s, all_to_all_s, reduce_scatter_s, send_recv_s
from costmodels.units import GB, GIB, KIB, MIB, MICRO, MILLI, milliseconds
from hardware_profiles.cluster import Group
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import boundary, group

FUNCTIONS: dict[str, Callable[[Group, float], float]] = {
    "all_gather": all_gather_s,
    "all_reduce": all_reduce_s,
    "alltoall": all_to_all_s,
    "reduce_scatter": reduce_scatter_s,
}
PROFILES = {
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA B200": "b200-sxm",
}
BANDS = (("below 64 KiB", 0, 64 * KIB), ("64 KiB to 8 MiB", 64 * KIB, 8 * MIB), ("8 to 64 MiB", 8 * MIB, 64 * MIB))
LARGE = ("64 MiB and more", 64 * MIB, float("inf"))


@dataclass(frozen=True)
class Row:
    """One measured collective: what was run, and seconds predicted and measured."""

    source: str
    profile: str
    operation: str
    members: int
    num_bytes: float
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Signed, relative to what was measured."""
        return self.predicted_s / self.measured_s - 1


def nccl_rows(path: Path) -> Iterator[Row]:
    """The timings of one node, for the devices that have a profile."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (profile := PROFILES.get(row["device"])) is None:
                continue
            members, num_bytes = int(row["num_gpus"]), int(row["bytes"])
            ranks = group(load_cluster(profile, 8), size=members, stride=1)
            predicted_s = FUNCTIONS[row["op_name"]](ranks, num_bytes)
            measured_s = float(row["us"]) * MICRO
            yield Row("aiconfigurator", profile, row["op_name"], members, num_bytes, predicted_s, measured_s)


def published_rows(path: Path) -> Iterator[Row]:
    """Figures of other sources, those that a pattern of `PUBLISHED` describes."""
    for fact in json.loads(path.read_text()):
        if fact["category"] == "measured-collective":
            for hardware, quantity, rows in PUBLISHED:
                if hardware in fact["hardware"] and (found := re.match(quantity, fact["quantity"])):
                    yield from rows(found, fact["value"])
                    break


def _nebius(found: re.Match[str], value: Any) -> Iterator[Row]:
    num_bytes = int(found[1]) * (GIB if found[2] == "GiB" else MIB)
    for (members, stride), rate in zip(((8, 1), (16, 1), (2, 8)), value, strict=True):
        yield _bus("Qwen3 on 16x H100", "h100-sxm:2x8", "all_reduce", members, stride, num_bytes, rate)


def _lumi_send(found: re.Match[str], value: Any) -> Iterator[Row]:
    num_bytes = int(found[1]) * MIB
    link = boundary(load_cluster("frontier:2x8"), stride=8)
    yield Row("LUMI log", "frontier:2x8", "send_recv", 2, num_bytes, send_recv_s(link, num_bytes), value[0] * MILLI)


def _ascend(found: re.Match[str], value: Any) -> Iterator[Row]:
    for operation, rate in zip(("all_gather", "all_reduce"), value, strict=True):
        yield _row("limulidae", "ascend-910b:1x8", operation, int(found[1]), 1, GIB, GIB / (rate * GB))


PUBLISHED: tuple[tuple[str, str, Callable[[re.Match[str], Any], Iterable[Row]]], ...] = (
    (
        "A100-SXM (8-GPU node)",
        r"all_reduce (\d) GPUs (\d+) MiB",
        lambda m, v: [_row("vTrain", "a100-80gb:1x8", "all_reduce", int(m[1]), 1, int(m[2]) * MIB, v[0] * MICRO)],
    ),
    (
        "H200 node",
        r"all_reduce busbw NVLS (\d) GPUs",
        lambda m, v: [_bus("S. Bekman", "h200-sxm:1x8", "all_reduce", int(m[1]), 1, 4 * GIB, v)],
    ),
    (
        "H200 node",
        r"(all_gather|reduce_scatter) busbw",
        lambda m, v: [_bus("S. Bekman", "h200-sxm:1x8", m[1], 8, 1, 16 * GIB, v)],
    ),
    (
        "A100-SXM node",
        r"all_reduce busbw \(8 GPU\)",
        lambda m, v: [_bus("S. Bekman", "a100-80gb:1x8", "all_reduce", 8, 1, 16 * GIB, v)],
    ),
    (
        "B200 node",
        r"all_reduce busbw NVLS",
        lambda m, v: [_bus("S. Bekman", "b200-sxm:1x8", "all_reduce", 8, 1, 16 * GIB, v)],
    ),
    (
        "MI300X node",
        r"all_reduce busbw (\d) GPU 4 GiB",
        lambda m, v: [_bus("S. Bekman", "mi300x:1x8", "all_reduce", int(m[1]), 1, 4 * GIB, v)],
    ),
    ("Nebius", r"all_reduce (\d+)(MiB|GiB)", _nebius),
    (
        "LUMI-G (MI250X) 1 node",
        r"TP8 all_gather, (\d+) MiB",
        lambda m, v: [_row("LUMI log", "frontier:1x8", "all_gather", 8, 1, int(m[1]) * MIB, v[0] * MILLI)],
    ),
    (
        "LUMI-G (MI250X) 2 nodes",
        r"rccl-tests all_reduce",
        lambda m, v: [_bus("LUMI ReFrame", "frontier:2x8", "all_reduce", 16, 1, 2 * GIB, v[0])],
    ),
    (
        "LUMI-G (MI250X) inter-node",
        r"DP=(\d+) all_reduce of ([\d.]+) GiB",
        lambda m, v: [_bus("LUMI log", f"frontier:{m[1]}x8", "all_reduce", int(m[1]), 8, float(m[2]) * GIB, v[1])],
    ),
    (
        "LUMI-G (MI250X) inter-node",
        r"DP=(\d+) all_gather ([\d.]+) MiB per rank",
        lambda m, v: [
            _row(
                "LUMI log",
                f"frontier:{m[1]}x8",
                "all_gather",
                int(m[1]),
                8,
                float(m[2]) * MIB * int(m[1]),
                v[0] * MILLI,
            )
        ],
    ),
    ("LUMI-G (MI250X) inter-node", r"pipeline recv (\d+) MiB", _lumi_send),
    ("Ascend 910B node", r"(\d) NPUs all_gather / all_reduce", _ascend),
)
"""Part of the hardware's name, pattern of the quantity, and the rows that the match and the value give."""


def _bus(source: str, hardware: str, operation: str, members: int, stride: int, num_bytes: float, rate: float) -> Row:
    """A figure given as bus bandwidth in GB/s: ``(n - 1) / n`` of the bytes over seconds, twice for an all-reduce
    (NCCL-tests)."""
    factor = (members - 1) / members * (2 if operation == "all_reduce" else 1)
    return _row(source, hardware, operation, members, stride, num_bytes, factor * num_bytes / (rate * GB))


def _row(
    source: str, hardware: str, operation: str, members: int, stride: int, num_bytes: float, measured_s: float
) -> Row:
    ranks = group(load_cluster(hardware), size=members, stride=stride)
    return Row(source, hardware, operation, members, num_bytes, FUNCTIONS[operation](ranks, num_bytes), measured_s)


def band_table(rows: list[Row]) -> str:
    """Error by profile and size band as Markdown: median, 90th percentile, bias and number of rows."""
    lines = ["| profile | size | rows | median error | 90th percentile | bias |", "|---|---|--:|--:|--:|--:|"]
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        for name, low, high in (*BANDS, LARGE):
            if low <= row.num_bytes < high:
                found[row.profile, name].append(row.error)
    for (profile, name), errors in sorted(found.items(), key=lambda item: (item[0][0], _position(item[0][1]))):
        sizes = sorted(map(abs, errors))
        lines.append(
            f"| {profile} | {name} | {len(errors)} | {statistics.median(sizes):.1%} | "
            f"{sizes[int(0.9 * (len(sizes) - 1))]:.1%} | {statistics.median(errors):+.1%} |"
        )
    return "\n".join(lines)


def _position(band: str) -> int:
    return [name for name, *_ in (*BANDS, LARGE)].index(band)


def row_table(rows: list[Row]) -> str:
    """Every row as Markdown."""
    lines = [
        "| source | cluster | collective | members | MiB | measured ms | predicted ms | error |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.source} | {row.profile} | {row.operation} | {row.members} | {row.num_bytes / MIB:,.0f} | "
        f"{milliseconds(row.measured_s):.3f} | {milliseconds(row.predicted_s):.3f} | {row.error:+.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Print both tables and the median of the large messages."""
    nccl, published = list(nccl_rows(Path(sys.argv[1]))), list(published_rows(Path(sys.argv[2])))
    print(band_table(nccl), end="\n\n")
    print(row_table(published), end="\n\n")
    for name, rows in (("one node, NCCL", nccl), ("other sources", published)):
        large = sorted(abs(row.error) for row in rows if row.num_bytes >= 64 * MIB)
        within = sum(error <= 0.10 for error in large) / len(large)
        median = statistics.median(large)
        print(f"{name}, 64 MiB and more: median {median:.1%}, {within:.0%} of {len(large)} rows within 10 %")


if __name__ == "__main__":
    main()
